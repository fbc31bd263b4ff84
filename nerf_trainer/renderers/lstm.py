"""The renderer of scene representation networks: a learned march along each ray."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldInputs, ImplicitFunctionBase, MarchedField
from nerf_trainer.ops.gradients import clamp_gradient
from nerf_trainer.ops.precision import full_float32
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import BaseRenderer, EvaluationMode, RendererOutput

GRADIENT_LIMIT = 10.0
"""Largest gradient of an element of the LSTM's hidden state (Sitzmann et al.'s code)."""
STEP_WEIGHT_STD = 1e-3
"""Standard deviation of the first weights of the step's layer: at first every step is about as long as its bias."""


@registry.register
class LSTMRenderer(BaseRenderer):
    """Steps along each ray by what an LSTM makes of the features it meets (Sitzmann et al. 2019, section 3.2).

    Rays start at their near bound, or at their first sample where they have samples, and take `num_raymarch_steps`
    steps, of either sign. What is met at the end is the pixel: its colour, and the sigmoid of its density as the mask.
    The depth is the marched length; it is negative where a march ended behind the camera, which
    `loss_depth_neg_penalty` is against.

    The gradient limit is one of unscaled gradients: of the precisions, fp16 scales the loss and is held back by it.
    """

    num_raymarch_steps: int = 10
    """Steps of a march."""
    init_depth: float = 17.0
    """How far an untrained march goes, world units: from the near bound to about where the scene is."""
    init_depth_noise_std: float = 5e-4
    """Standard deviation of Gaussian noise on the start of each ray while training, world units."""
    hidden_size: int = 16
    """Width of the LSTM's state."""
    n_feature_channels: int = 256
    """Width of the field's features."""
    bg_color: tuple[float, ...] | None = None
    """Background where the ray bundle brings none: one value, or one for each channel. Null shows the field's colours
    everywhere, whatever the mask."""
    verbose: bool = False
    """Read for the sake of old configurations; a march prints nothing."""

    def __post_init__(self) -> None:
        self._check_options()
        self._cell = nn.LSTMCell(self.n_feature_channels, self.hidden_size)
        _init_cell_(self._cell)
        self._step = nn.Linear(self.hidden_size, 1)
        nn.init.constant_(self._step.bias, self.init_depth / self.num_raymarch_steps)
        nn.init.normal_(self._step.weight, std=STEP_WEIGHT_STD)
        self._background: Tensor | None
        background = None if self.bg_color is None else torch.tensor(self.bg_color)
        self.register_buffer("_background", background, persistent=False)
        self._noise = RandomStream("noise")

    def _check_options(self) -> None:
        for name, n in (
            ("num_raymarch_steps", self.num_raymarch_steps),
            ("hidden_size", self.hidden_size),
            ("n_feature_channels", self.n_feature_channels),
        ):
            if n < 1:
                raise ConfigError(f"{name}: {n}, expected a whole number of at least 1")
        if self.init_depth_noise_std < 0.0:
            raise ConfigError(f"init_depth_noise_std: {self.init_depth_noise_std}, expected 0 or more")
        if self.bg_color is not None and len(self.bg_color) not in (1, self.spec.color_dim):
            raise ConfigError(
                f"bg_color of the renderer: {list(self.bg_color)}, expected 1 or {self.spec.color_dim} values"
            )

    def forward(
        self,
        ray_bundle: RayBundle,
        implicit_functions: Sequence[BoundField] = (),
        evaluation_mode: EvaluationMode = EvaluationMode.EVALUATION,
        **kwargs: object,
    ) -> RendererOutput:
        if len(implicit_functions) != 1 or not isinstance(implicit_functions[0].field, MarchedField):
            raise ValueError("the renderer needs one field, a MarchedField")
        field, inputs = implicit_functions[0].field, implicit_functions[0].inputs
        lengths, features = self._march(field, inputs, ray_bundle, self._start(ray_bundle, evaluation_mode))
        outputs = field.generate(features, ray_bundle.with_lengths(lengths), inputs)
        with torch.autocast(lengths.device.type, enabled=False):
            masks = torch.sigmoid(outputs.densities[..., 0, :].float())
            colors = outputs.features[..., 0, :].float()
            background = self._background if ray_bundle.background is None else ray_bundle.background
            if background is not None:
                colors = masks * colors + (1.0 - masks) * background
        return RendererOutput(features=colors, depths=lengths, masks=masks)

    def _start(self, ray_bundle: RayBundle, mode: EvaluationMode) -> Float[Tensor, "*rays 1"]:
        """Where the marches begin, in float32."""
        start = ray_bundle.near[..., None] if ray_bundle.lengths is None else ray_bundle.lengths[..., :1]
        if mode is EvaluationMode.EVALUATION or self.init_depth_noise_std == 0.0:
            return start.float()
        noise = torch.randn(start.shape, generator=self._noise.on(start.device), device=start.device)
        return start.float() + noise * self.init_depth_noise_std

    def _march(
        self, field: MarchedField, inputs: FieldInputs, ray_bundle: RayBundle, lengths: Float[Tensor, "*rays 1"]
    ) -> tuple[Float[Tensor, "*rays 1"], Float[Tensor, "*rays 1 F"]]:
        """Where the marches end, and the features there. Steps are made in float32, autocast or TF32 or not."""
        features_at = field.marching(ray_bundle, inputs)
        features = features_at(ray_bundle.with_lengths(lengths))
        state: tuple[Tensor, Tensor] | None = None
        for _ in range(self.num_raymarch_steps):
            with full_float32(lengths.device.type):
                hidden, memory = self._cell(features.float().reshape(-1, self.n_feature_channels), state)
                # The memory's gradient comes through the hidden states, which bounds it with theirs.
                state = (clamp_gradient(hidden, GRADIENT_LIMIT), memory)
                lengths = lengths + self._step(state[0]).reshape(lengths.shape)
            features = features_at(ray_bundle.with_lengths(lengths))
        return lengths, features

    def check_fields(self, fields: Sequence[ImplicitFunctionBase]) -> None:
        if len(fields) != 1:
            raise ConfigError(
                f"renderer_class_type: LSTMRenderer marches once with one field, found {len(fields)} passes; set"
                " num_passes: 1, no coarse field, and don't share the one"
            )
        (field,) = fields
        if not isinstance(field, MarchedField):
            raise ConfigError(
                f"implicit_function_class_type: {type(field).__name__} has no features to march by, expected for"
                " LSTMRenderer a MarchedField, such as SRNImplicitFunction or SRNHyperNetImplicitFunction"
            )
        if field.feature_dim != self.n_feature_channels:
            raise ConfigError(
                f"n_feature_channels of LSTMRenderer: {self.n_feature_channels}, expected {field.feature_dim}, the"
                f" width of {type(field).__name__}'s features"
            )

    @property
    def needs_lengths(self) -> bool:
        return False

    @property
    def background(self) -> tuple[float, ...] | None:
        return self.bg_color

    @property
    def n_samples_per_ray(self) -> int:
        """1: a march evaluates the field many times, but holds one sample of each ray at a time."""
        return 1

    @property
    def capturable(self) -> bool:
        return True


def _init_cell_(cell: nn.LSTMCell) -> None:
    """Kaiming-normal weights for the input, orthogonal ones for the state, and an open forget gate.

    Biases are 0 but for the forget gate's, which are 1 in both bias vectors, as Sitzmann et al. have it.
    """
    nn.init.kaiming_normal_(cell.weight_ih)
    nn.init.orthogonal_(cell.weight_hh)
    forget = slice(cell.hidden_size, 2 * cell.hidden_size)
    with torch.no_grad():
        for bias in (cell.bias_ih, cell.bias_hh):
            bias.zero_()
            bias[forget] = 1.0
