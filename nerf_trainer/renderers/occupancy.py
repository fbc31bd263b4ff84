"""The renderer of the fast path: samples only where an occupancy grid says that something is.

R: rays; M: places in the row of packed samples; C: channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import nested, registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, ImplicitFunctionBase
from nerf_trainer.occupancy import OccupancyGrid
from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.packed import composite_packed, packed_distortion
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.bundle import PackedSamples, RayBundle
from nerf_trainer.renderers.base import DISTORTION, BaseRenderer, EvaluationMode, RendererOutput

N_SAMPLES, VALID_RAYS, OCCUPIED = "n_samples", "valid_rays", "occupied"
"""Statistics: samples in a step's row, the part of its rays that were rendered, the part of cells that are occupied."""
N_CANDIDATES = "n_candidates"
"""Statistic where hidden samples are pruned: samples in a step's row before they were."""


@registry.register
class OccupancyGridRenderer(BaseRenderer):
    """Composites the samples that lie in occupied cells, packed in one row (Müller et al. 2022; Li et al. 2023).

    A training step has room for a fixed number of samples, so that it can be captured as one graph: rays that don't fit
    are not rendered, and don't count in losses that step. An evaluation renders every ray, front to back in rounds, and
    leaves the rays that nothing more can be seen along. The grid is renewed before training steps, by the densities of
    the one field; a field whose density depends on more than a position is refused.

    With `candidate_budget_training` a step asks for densities first, and its row holds only samples that are not
    hidden, as in NerfAcc (Li et al. 2023): it has room for more rays, whose colours and gradients stay the same.
    """

    occupancy_grid: OccupancyGrid = nested()
    """Where it is worth looking."""
    sample_budget_training: int = 2**18
    """Room for samples in a training step."""
    candidate_budget_training: int = 0
    """Room for the samples among which a training step looks for those that are not hidden; 0: all are taken."""
    sample_budget_evaluation: int = 2**22
    """Most samples evaluated at once in evaluation; any number works."""
    samples_per_round_evaluation: int = 16
    """Most samples of each ray in the first round of an evaluation; later rounds have twice as many each."""
    early_stop: float = 1e-4
    """Transmittance below which what lies behind is neither seen nor trained."""
    bg_color: tuple[float, ...] = (0.0,)
    """Background where the ray bundle brings none: one value, or one for each feature channel."""

    def __post_init__(self) -> None:
        self._check_options()
        self._background = torch.nn.Buffer(torch.tensor(self.bg_color), persistent=False)
        self._occupied = torch.nn.Buffer(torch.ones(()))  # as the last update left it
        self._jitter = RandomStream("jitter")

    def _check_options(self) -> None:
        for name, n, least in (
            ("sample_budget_training", self.sample_budget_training, 1),
            ("sample_budget_evaluation", self.sample_budget_evaluation, 1),
            ("samples_per_round_evaluation", self.samples_per_round_evaluation, 1),
        ):
            if n < least:
                raise ConfigError(f"{name}: {n}, expected a whole number of at least {least}")
        if self.prunes and self.candidate_budget_training < self.sample_budget_training:
            raise ConfigError(
                f"candidate_budget_training: {self.candidate_budget_training}, expected 0, or room for at least the"
                f" {self.sample_budget_training} samples of sample_budget_training"
            )
        if self.prunes and self.early_stop == 0.0:
            raise ConfigError(
                "candidate_budget_training: with early_stop: 0 nothing is hidden; give a transmittance, as 1e-4, or 0"
                " candidates"
            )
        if not 0.0 <= self.early_stop < 1.0:
            raise ConfigError(f"early_stop: {self.early_stop}, expected a transmittance from 0 to below 1, as 1e-4")
        if len(self.bg_color) not in (1, self.spec.color_dim):
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
        if len(implicit_functions) != 1:
            raise ValueError(f"the renderer needs one field, was given {len(implicit_functions)}")
        rays, field = ray_bundle.flatten(), implicit_functions[0]
        if evaluation_mode is EvaluationMode.EVALUATION:
            return self._output(self._evaluate(rays, field), ray_bundle)
        packed, counts = self._training_samples(rays, field)
        seen, weights = self._composite(packed, rays, field, with_weights=self.spec.distortion)
        spread = None if weights is None else packed_distortion(weights, *_layout(packed))
        per_ray = (*ray_bundle.ray_shape, 1)
        return replace(
            self._output(seen, ray_bundle),
            valid=packed.complete.float().reshape(per_ray),
            extras={} if spread is None else {DISTORTION: spread.reshape(per_ray)},
            statistics={
                **counts,
                VALID_RAYS: packed.complete.float().mean(),
                OCCUPIED: self._occupied.clone(),
            },
        )

    def _training_samples(self, rays: RayBundle, field: BoundField) -> tuple[PackedSamples, dict[str, Tensor]]:
        """A step's samples, and statistics of how many there are."""
        grid, budget, generator = self.occupancy_grid, self.sample_budget_training, self._jitter.on(rays.near.device)
        if not self.prunes:
            packed = grid.samples(rays, budget, generator)
            return packed, {N_SAMPLES: packed.n_used.float()}
        with _no_cached_casts():
            packed, n_candidates = grid.visible_samples(
                rays, field.densities, self.candidate_budget_training, budget, self.early_stop, generator
            )
        return packed, {N_SAMPLES: packed.n_used.float(), N_CANDIDATES: n_candidates.float()}

    def _composite(
        self, packed: PackedSamples, rays: RayBundle, field: BoundField, with_weights: bool = False
    ) -> tuple[Float[Tensor, "R seen"], Float[Tensor, "M"] | None]:
        """What the rays see: features, opacity and depth in one row; and the samples' weights where they are wanted."""
        outputs = field(packed.samples)
        with torch.autocast(rays.near.device.type, enabled=False):
            seen = composite_packed(
                outputs.densities.flatten(),
                outputs.features.flatten(0, -2),
                *_layout(packed),
                scale=torch.linalg.vector_norm(rays.directions[0], dim=-1),
                early_stop=self.early_stop,
                with_weights=with_weights,
            )
            return torch.cat([seen.features, seen.opacity[:, None], seen.depth[:, None]], dim=-1), seen.weights

    @torch.no_grad()
    def _evaluate(self, rays: RayBundle, field: BoundField) -> Float[Tensor, "R seen"]:
        """What all rays see, a part of them at a time."""
        at_once = max(1, self.sample_budget_evaluation // self.samples_per_round_evaluation)
        parts = [rays[start : start + at_once] for start in range(0, rays.n_rays, at_once)]
        return torch.cat([self._front_to_back(part, field) for part in parts])

    def _front_to_back(self, rays: RayBundle, field: BoundField) -> Float[Tensor, "R seen"]:
        """What rays see, in rounds: which of them have samples left that are not hidden is read back."""
        grid, width = self.occupancy_grid, self.spec.color_dim + 2
        seen = rays.near.new_zeros(rays.n_rays, width)
        opacity, number = seen[:, -2], torch.arange(rays.n_rays, device=seen.device)
        n, left = self.samples_per_round_evaluation, grid.max_samples_per_ray
        while len(number) > 0 and left > 0:
            n = min(n, left, max(1, self.sample_budget_evaluation // len(number)))
            packed = grid.samples(rays, max_samples=n)
            if len(packed.starts) == 0:
                break
            added, _ = self._composite(packed, rays, field)
            seen[number] += (1.0 - opacity[number])[:, None] * added
            goes_on = (packed.count == n) & (opacity[number] < 1.0 - self.early_stop)
            place = torch.nonzero(goes_on)[:, 0]
            last = (packed.first + n - 1)[place]
            rays, number = replace(rays[place], near=packed.ends[last][None]), number[place]
            n, left = 2 * n, left - n
        return seen

    def _output(self, seen: Float[Tensor, "R seen"], ray_bundle: RayBundle) -> RendererOutput:
        """What was seen, over the background, in the rays' shape."""
        features, masks, depths = seen.reshape(*ray_bundle.ray_shape, -1).split([self.spec.color_dim, 1, 1], dim=-1)
        background = self._background if ray_bundle.background is None else ray_bundle.background
        return RendererOutput(features=features + (1.0 - masks) * background, depths=depths, masks=masks)

    def before_step(self, step: int, fields: Sequence[BoundField]) -> None:
        """Renew the occupancy grid by the field's densities as they are now."""
        if step % self.occupancy_grid.update_interval == 0:
            (field,) = fields
            with torch.no_grad():
                self.occupancy_grid.update(step, partial(_densities_at, field))
                self._occupied.copy_(self.occupancy_grid.fraction_occupied())

    def learn_views(self, views: Callable[[], Cameras], nearest: Callable[[Cameras], Float[Tensor, "B"]]) -> None:
        """Mark the cells that no training view sees, or none from where its rays begin on."""
        cameras = views()
        self.occupancy_grid.mark_unseen(cameras, nearest(cameras))

    def check_fields(self, fields: Sequence[ImplicitFunctionBase]) -> None:
        name = type(self).__name__
        if len(fields) != 1:
            raise ConfigError(
                f"renderer_class_type: {name} renders one pass, found {len(fields)}; set num_passes: 1, or no coarse"
                " field and don't share the one"
            )
        (field,) = fields
        faults = (
            (not field.gives_density, "gives no density"),
            (field.couples_samples, "mixes the samples of a ray, which are packed here"),
            (field.needs_cones, "integrates over cones, which packed samples have not"),
            (field.sees_camera_axes, "sees positions in the axes of a view, of which an occupancy grid knows nothing"),
            (field.spec.conditioning_dim > 0, "is conditioned on views or codes, and the occupancy is of one scene"),
        )
        fault = next((text for is_so, text in faults if is_so), None)
        if fault is not None:
            raise ConfigError(
                f"implicit_function_class_type: {type(field).__name__} {fault}; {name} expects a field of positions and"
                " directions, such as HashGridImplicitFunction; or use MultiPassEmissionAbsorptionRenderer"
            )

    @property
    def needs_lengths(self) -> bool:
        return False

    @property
    def statistics_names(self) -> tuple[str, ...]:
        return (N_SAMPLES, VALID_RAYS, OCCUPIED, *((N_CANDIDATES,) if self.prunes else ()))

    @property
    def prunes(self) -> bool:
        """Whether a training step leaves hidden samples out of its row."""
        return self.candidate_budget_training != 0

    @property
    def gives_distortion(self) -> bool:
        return True

    @property
    def background(self) -> tuple[float, ...] | None:
        return self.bg_color

    @property
    def n_samples_per_ray(self) -> int:
        """1: an evaluation keeps within `sample_budget_evaluation` by itself, so that a chunk is counted in rays."""
        return 1

    @property
    def capturable(self) -> bool:
        """Where kernels march and composite: their twins read back how long the longest ray is."""
        return uses_triton(self._background)


def _layout(packed: PackedSamples) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """How the samples lie in their row, as `ops.packed` takes it."""
    return packed.starts, packed.ends, packed.ray_index, packed.first, packed.count


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Autocast keeps no copies of the weights within: in releases of torch that have its issue 158232, copies that are
    made without gradients are found again by what needs them."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _densities_at(field: BoundField, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 1"]:
    """A field's densities at points."""
    return field.field.densities(_at(points), field.inputs)[0, :, 0]


def _at(points: Float[Tensor, "N 3"]) -> RayBundle:
    """Points as (1, N) rays of one sample each, for fields that are asked for their density alone."""
    points = points[None]
    ahead = torch.zeros_like(points)
    ahead[..., 2] = 1.0
    zero = torch.zeros_like(points[..., 0])
    return RayBundle(
        origins=points,
        directions=ahead,
        view_directions=ahead,
        near=zero,
        far=zero,
        xy=zero[..., None].expand(*zero.shape, 2),
        camera_index=torch.zeros_like(zero, dtype=torch.int64),
        lengths=zero[..., None],
    )
