"""One training step of other projects' code, at the setting of the classic NeRF.

Nothing of theirs is here: a step imports their networks, rendering function and loss from a source tree that the user
has, and calls them in the order and with the options of their own training loop, on rays that are already on the
device. What their loops do around that (choosing pixels on the host, writing logs) is left out, in their favour;
where a loop reads the loss back at every step, so does the step here.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.nerf_step import scene
from benchmarks.peer_stubs import compiled_or_refusing, module, stub_always, stub_missing
from benchmarks.pixel_sources import from_store

NEAR, FAR = 2.0, 6.0
STUBS = ("imageio", "matplotlib", "tqdm", "cv2", "kornia", "test_tube", "pytorch_lightning", "apex")
N_BATCHES = 16
"""Batches of rays that steps go through in turn."""


@dataclass(frozen=True)
class Sizes:
    """What a step consists of."""

    rays: int = 1024
    coarse: int = 64
    """Samples a ray of the coarse pass."""
    fine: int = 128
    """Samples that the fine pass has besides those."""


class Batches:
    """Rays and images of the random scene that our own step is timed on, on the device.

    Args:
        n_rays: rays of a batch.
        device: where all is.
    """

    def __init__(self, n_rays: int, device: torch.device) -> None:
        frames = scene(device)
        generator = torch.Generator(device).manual_seed(0)
        self._rays = [from_store(frames, n_rays, generator) for _ in range(N_BATCHES)]
        self._images = torch.rand(N_BATCHES, 3, 400, 400, device=device, generator=generator)
        self._n = 0

    def rays(self) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 3"], Float[Tensor, "rays 3"]]:
        """Origins, directions and colours of the next batch."""
        self._n += 1
        return self._rays[self._n % N_BATCHES]

    def image(self) -> Float[Tensor, "1 3 400 400"]:
        """The next image."""
        self._n += 1
        return self._images[self._n % N_BATCHES, None]


class PeerStep:
    """A peer's loss and optimizer, taken as a training step.

    Args:
        loss: the objective of the next batch, still to be differentiated.
        optimizer: over the peer's parameters.
        reads_loss: read the loss back at every step.
    """

    def __init__(self, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, reads_loss: bool = False) -> None:
        self._loss, self.optimizer, self._reads_loss = loss, optimizer, reads_loss

    def __call__(self, autocast: Callable[[], AbstractContextManager[object]]) -> Tensor:
        """One step; returns the loss."""
        with autocast():
            loss = self._loss()
        self.optimizer.zero_grad()
        loss.backward()
        if self._reads_loss:
            loss.item()
        self.optimizer.step()
        return loss.detach()

    @property
    def n_parameters(self) -> int:
        """Of all networks."""
        return sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])


def _searchsorted(cdf: Tensor, u: Tensor, side: str = "left") -> Tensor:
    """What the compiled package of that name does, which these trees used before torch had it."""
    return torch.searchsorted(cdf, u, right=side == "right")


def yenchenlin(sizes: Sizes, batches: Batches, device: torch.device) -> PeerStep:
    """yenchenlin/nerf-pytorch: `create_nerf` and `render` with the options of its configs/lego.txt."""
    stub_missing(STUBS)
    import run_nerf as peer  # pyright: ignore[reportMissingImports]

    peer.device = device
    with tempfile.TemporaryDirectory() as empty:
        chosen = Namespace(
            multires=10,
            multires_views=4,
            i_embed=0,
            use_viewdirs=True,
            N_importance=sizes.fine,
            N_samples=sizes.coarse,
            netdepth=8,
            netwidth=256,
            netdepth_fine=8,
            netwidth_fine=256,
            netchunk=65536,
            lrate=5e-4,
            basedir=empty,
            expname="",
            ft_path=None,
            no_reload=True,
            perturb=1.0,
            white_bkgd=True,
            raw_noise_std=0.0,
            dataset_type="blender",
            no_ndc=False,
            lindisp=False,
        )
        arguments, _, _, _, optimizer = peer.create_nerf(chosen)

    def loss() -> Tensor:
        origins, directions, rgb = batches.rays()
        rays = torch.stack([origins, directions])
        fine, _, _, extras = peer.render(
            400, 400, None, chunk=32768, rays=rays, retraw=True, near=NEAR, far=FAR, **arguments
        )
        return peer.img2mse(fine, rgb) + peer.img2mse(extras["rgb0"], rgb)

    return PeerStep(loss, optimizer)


def nerf_pl(sizes: Sizes, batches: Batches, device: torch.device) -> PeerStep:
    """kwea123/nerf_pl: `render_rays`, `NeRF` and its loss with the defaults of its opt.py, white background."""
    stub_missing(STUBS)
    module("torchsearchsorted", searchsorted=_searchsorted)
    from losses import loss_dict  # pyright: ignore[reportMissingImports]
    from models.nerf import Embedding, NeRF  # pyright: ignore[reportMissingImports]
    from models.rendering import render_rays  # pyright: ignore[reportMissingImports]

    networks = [NeRF().to(device), NeRF().to(device)]
    embeddings = [Embedding(3, 10).to(device), Embedding(3, 4).to(device)]
    optimizer = torch.optim.Adam([p for net in networks for p in net.parameters()], lr=5e-4, eps=1e-8)
    score = loss_dict["mse"]()

    def loss() -> Tensor:
        origins, directions, rgb = batches.rays()
        bounds = torch.tensor([NEAR, FAR], device=device).expand(len(origins), 2)
        rays = torch.cat([origins, directions, bounds], dim=1)
        found = render_rays(networks, embeddings, rays, sizes.coarse, False, 1.0, 1.0, sizes.fine, 1024 * 32, True)
        return score(found, rgb)

    return PeerStep(loss, optimizer)


def _krrish94(sizes: Sizes, batches: Batches, device: torch.device, n_layers: int, width: int) -> PeerStep:
    """Its config/lego.yml, with as many samples as the others and a network of this size."""
    stub_missing(STUBS)
    module("torchsearchsorted", searchsorted=_searchsorted)
    import nerf as peer  # pyright: ignore[reportMissingImports]

    encode_xyz, encode_dir = peer.get_embedding_function(10), peer.get_embedding_function(4)

    def network() -> Any:
        made = peer.models.FlexibleNeRFModel(
            num_layers=n_layers, hidden_size=width, num_encoding_fn_xyz=10, num_encoding_fn_dir=4
        )
        made.linear_layers = made.layers_xyz  # its forward asks for a name that its constructor does not give
        return made.to(device)

    coarse, fine = network(), network()
    optimizer = torch.optim.Adam([*coarse.parameters(), *fine.parameters()], lr=5e-3)
    training = SimpleNamespace(
        num_coarse=sizes.coarse,
        num_fine=sizes.fine,
        perturb=True,
        lindisp=False,
        chunksize=131072,
        radiance_field_noise_std=0.2,
        white_background=False,
    )
    chosen = SimpleNamespace(
        nerf=SimpleNamespace(use_viewdirs=True, train=training),
        dataset=SimpleNamespace(no_ndc=True, near=NEAR, far=FAR),
    )

    def loss() -> Tensor:
        origins, directions, rgb = batches.rays()
        found = peer.run_one_iter_of_nerf(
            400,
            400,
            555.0,
            coarse,
            fine,
            origins,
            directions,
            chosen,
            mode="train",
            encode_position_fn=encode_xyz,
            encode_direction_fn=encode_dir,
        )
        return torch.nn.functional.mse_loss(found[0], rgb) + torch.nn.functional.mse_loss(found[3], rgb)

    return PeerStep(loss, optimizer, reads_loss=True)


def krrish94(sizes: Sizes, batches: Batches, device: torch.device) -> PeerStep:
    """krrish94/nerf-pytorch as it is: its loop builds 4 layers of 128, whatever its configuration says."""
    return _krrish94(sizes, batches, device, n_layers=4, width=128)


def krrish94_8x256(sizes: Sizes, batches: Batches, device: torch.device) -> PeerStep:
    """The same with the paper's network."""
    return _krrish94(sizes, batches, device, n_layers=8, width=256)


def implicitron(sizes: Sizes, batches: Batches, device: torch.device) -> PeerStep:
    """PyTorch3D's Implicitron: `GenericModel` in two passes with NeRF's fields, as its recipes for NeRF set it.

    Its step takes an image and a camera and draws the rays by itself. Where its tree was not compiled, fine samples are
    drawn by its own function in Python instead of the kernel.
    """
    stub_always(("torchvision", "lpips", "iopath", "fvcore", "visdom"))
    is_compiled = compiled_or_refusing("pytorch3d._C")
    from pytorch3d.implicitron.models.generic_model import (  # pyright: ignore[reportMissingImports]
        EvaluationMode,
        GenericModel,
    )
    from pytorch3d.implicitron.tools.config import expand_args_fields  # pyright: ignore[reportMissingImports]
    from pytorch3d.renderer import PerspectiveCameras  # pyright: ignore[reportMissingImports]

    if not is_compiled:
        from pytorch3d.implicitron.models.renderer import ray_point_refiner  # pyright: ignore[reportMissingImports]
        from pytorch3d.renderer.implicit.sample_pdf import sample_pdf_python  # pyright: ignore[reportMissingImports]

        ray_point_refiner.sample_pdf = sample_pdf_python
    expand_args_fields(GenericModel)
    model = GenericModel(
        num_passes=2,
        chunk_size_grid=102400,
        render_image_height=400,
        render_image_width=400,
        image_feature_extractor_class_type=None,
        view_pooler_enabled=False,
        loss_weights={"loss_rgb_mse": 1.0, "loss_prev_stage_rgb_mse": 1.0},
        raysampler_AdaptiveRaySampler_args={
            "n_rays_per_image_sampled_from_mask": sizes.rays,
            "scene_extent": 2.0,
            "n_pts_per_ray_training": sizes.coarse,
        },
        renderer_MultiPassEmissionAbsorptionRenderer_args={
            "n_pts_per_ray_fine_training": sizes.fine,
            "append_coarse_samples_to_fine": True,
            "density_noise_std_train": 1.0,
        },
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    camera = PerspectiveCameras(R=torch.eye(3)[None], T=torch.tensor([[0.0, 0.0, 4.0]]), focal_length=2.0).to(device)
    mask = torch.ones(1, 1, 400, 400, device=device)

    def loss() -> Tensor:
        found = model(
            image_rgb=batches.image(), camera=camera, fg_probability=mask, evaluation_mode=EvaluationMode.TRAINING
        )
        return found["objective"]

    return PeerStep(loss, optimizer)


@dataclass(frozen=True)
class Peer:
    """A project whose step can be timed."""

    make: Callable[[Sizes, Batches, torch.device], PeerStep]
    file: str
    """What its source tree has and others lack."""
    on_default_device: bool = False
    """Whether its code makes tensors wherever torch makes them by default."""

    def check(self, root: Path) -> None:
        """Raises SystemExit where the folder isn't the project's."""
        if not (root / self.file).is_file():
            raise SystemExit(f"--peer-root {root}: found no {self.file} in it, expected the root of the peer's sources")


PEERS = {
    "yenchenlin": Peer(yenchenlin, "run_nerf.py", on_default_device=True),
    "nerf_pl": Peer(nerf_pl, "models/rendering.py"),
    "krrish94": Peer(krrish94, "nerf/train_utils.py"),
    "krrish94_8x256": Peer(krrish94_8x256, "nerf/train_utils.py"),
    "implicitron": Peer(implicitron, "pytorch3d/implicitron/models/generic_model.py"),
}
"""By the name on the command line."""
