"""The least time that a training step can take, from its operations and what a device reaches.

The classic NeRF is bound by the products of its networks: the floor is their operations over the throughput of one
large product in the same precision. The arithmetic is written out here; the throughput comes from `ceilings`.
"""

LAYERS_NERF = (
    *((63, 256),),  # the encoded position (10 octaves)
    *((256, 256),) * 4,
    *((256 + 63, 256),),  # the skip
    *((256, 256),) * 2,
    *((256, 256), (256, 1)),  # feature and density
    *((256 + 27, 128), (128, 3)),  # feature and encoded direction (4 octaves); colour
)
"""Inputs and outputs of each layer of NeRF's 8x256 network (Mildenhall et al. 2020, figure 7)."""

CONSTANT_INPUTS_NERF = ((63, 256), (63, 256), (27, 128))
"""Of those, the inputs that need no gradient, with the outputs of their layers."""

EVALUATIONS_CLASSIC = 64 + 64 + 128
"""Evaluations of a network for a ray: 64 coarse, the same and 128 more by the fine one."""


def nerf_macs() -> int:
    """Multiply-adds of one evaluation of the 8x256 network: 593,408."""
    return sum(inputs * outputs for inputs, outputs in LAYERS_NERF)


def nerf_training_flop() -> int:
    """Operations of one evaluation in training: 2 a multiply-add, three times (outputs, gradients of both
    inputs and weights), without the gradients of encodings: 3.489 million."""
    return 6 * nerf_macs() - 2 * sum(inputs * outputs for inputs, outputs in CONSTANT_INPUTS_NERF)


def classic_step_ms(n_rays: int, tflops: float) -> float:
    """Milliseconds of the products of a training step of the classic NeRF.

    Args:
        n_rays: rays of a step.
        tflops: throughput that a product reaches in the step's precision, in 1e12 operations a second.
    """
    return n_rays * EVALUATIONS_CLASSIC * nerf_training_flop() / (tflops * 1e12) * 1e3


def classic_view_s(height: int, width: int, tflops: float) -> float:
    """Seconds of the products of a rendered view of the classic NeRF."""
    return height * width * EVALUATIONS_CLASSIC * 2 * nerf_macs() / (tflops * 1e12)
