"""OccupancyGrid: where along a ray it is worth looking (Mueller et al. 2022, Instant-NGP, appendix E.2).

R: cells along each axis; C: cascades, grids of R^3 cells around one centre, the box of each twice as large as that of
the one before. A cell keeps the density that was last found in it, fading from update to update, and a bit that says
whether rays are to be sampled there. What the box of a cascade shares with the next smaller one is the smaller one's.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.visibility import seen_by_any
from nerf_trainer.config import Configurable
from nerf_trainer.errors import ConfigError
from nerf_trainer.geometry.contraction import CONTRACTED_RADIUS, Norm, uncontract
from nerf_trainer.ops.gather_rows import gather_rows
from nerf_trainer.ops.march import Marched, march
from nerf_trainer.ops.occupancy_bits import (
    BLOCK,
    OccupiedCells,
    cell_coordinates,
    occupied_blocks,
    pack_cells,
    unpack_cells,
)
from nerf_trainer.ops.prune import prune
from nerf_trainer.ops.ray_steps import BoundedRays, Steps
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.bundle import PackedSamples, RayBundle

POINTS_AT_ONCE = 2**21
"""Most points whose density is asked for together, which bounds memory."""

_COVERED = -1.0
"""Density of a cell that is never looked at: no camera sees it, or a smaller cascade has its place."""
_OF_MEAN = 1.0 - 1e-3
"""Part of the mean density above which a cell counts: below 1, so that in an even fog, where all are the mean but for
rounding, all do."""

DensityFunction = Callable[[Float[Tensor, "N 3"]], Float[Tensor, "N 1"]]
"""The density, per world unit, at points of the world (of NDC, where rays are in NDC)."""


class OccupancyGrid(Configurable, nn.Module):
    """Which cells of a box, of boxes within boxes, or of all space contracted, hold something to see.

    The state is `densities` and `bits`; everything else follows from it. Updates happen in place and outside of a
    captured step; `samples` may be within one.
    """

    resolution: int = 128
    """Cells along each axis of a cascade; a multiple of 8, of 32 with several cascades or a contraction."""
    n_cascades: int = 1
    """Boxes, each twice as large as the one before, for scenes without bounds."""
    extents: tuple[float, float, float] = (2.0, 2.0, 2.0)
    """Lengths of the innermost box along x, y and z, world units; cells have its proportions."""
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of all boxes, world units."""
    contraction: bool = False
    """One grid for all of space instead of cascades: its middle half is the box, what lies outside is contracted into
    the rest (mip-NeRF 360's contraction in the maximum norm)."""
    step_size: float | None = None
    """Distance between samples, world units; null: the diagonal of the innermost box / 1024."""
    cone_angle: float = 0.0
    """Growth of the step with the distance from the camera, from step_size on; above 0 for scenes without bounds:
    1/256 in Instant-NGP, 1/64 in ngp_unbounded."""
    max_samples_per_ray: int = 1024
    """A ray ends after this many samples."""
    update_interval: int = 16
    """Training steps from one update to the next."""
    warmup_steps: int = 256
    """Training steps in which updates look into every cell; later ones into a quarter as many, half of them drawn from
    the occupied."""
    decay: float = 0.95
    """What an update leaves of the densities of before."""
    occupancy_threshold: float = 0.01
    """Optical thickness of a step (density times width) from which a cell is occupied; the mean of the cells of the
    innermost box that any view sees where that is less, whose steps are the smallest."""

    def __post_init__(self) -> None:
        self._check()
        cells = self.resolution**3
        self.densities = nn.Buffer(torch.zeros(self.n_cascades, cells))
        if self.n_cascades > 1:
            first, last = self.resolution // 4, 3 * self.resolution // 4
            grids = self.densities.view(-1, *[self.resolution] * 3)
            grids[1:, first:last, first:last, first:last] = _COVERED
        self.bits = nn.Buffer(pack_cells(self.densities >= 0.0))
        self.blocks = nn.Buffer(occupied_blocks(self.bits), persistent=False)
        self._draws = RandomStream("occupancy", per_rank=False)
        self.register_load_state_dict_post_hook(_derive_blocks)

    def _check(self) -> None:
        if len(self.extents) != 3 or len(self.translation) != 3 or min(self.extents) <= 0:
            raise ConfigError(
                f"extents, translation: {list(self.extents)}, {list(self.translation)}; expected three positive lengths"
                " and three coordinates"
            )
        nested = self.n_cascades > 1 or self.contraction
        multiple = 4 * BLOCK if nested else BLOCK
        if self.resolution < multiple or self.resolution % multiple != 0:
            raise ConfigError(f"resolution: {self.resolution}; expected a multiple of {multiple}")
        if self.contraction and self.n_cascades != 1:
            raise ConfigError(f"n_cascades: {self.n_cascades} with contraction=true; expected 1")
        for name, n in (
            ("n_cascades", self.n_cascades),
            ("max_samples_per_ray", self.max_samples_per_ray),
            ("update_interval", self.update_interval),
        ):
            if n < 1:
                raise ConfigError(f"{name}: {n}; expected a whole number of at least 1")
        if self.step_size is not None and self.step_size <= 0.0:
            raise ConfigError(f"step_size: {self.step_size}; expected a length above 0, or null")
        if self.warmup_steps < 1:
            raise ConfigError(
                f"warmup_steps: {self.warmup_steps}; expected at least 1: the first update sees all cells"
            )
        if self.cone_angle < 0.0 or (self.contraction and self.cone_angle == 0.0):
            least = "a value above 0 with contraction=true, as 1/256" if self.contraction else "0 or more"
            raise ConfigError(f"cone_angle: {self.cone_angle}; expected {least}")
        if not 0.0 <= self.decay <= 1.0:
            raise ConfigError(f"decay: {self.decay}; expected a value from 0 to 1")
        if self.occupancy_threshold < 0.0:
            raise ConfigError(f"occupancy_threshold: {self.occupancy_threshold}; expected 0 or more")

    @property
    def step(self) -> float:
        """The distance between samples, world units; with a cone the smallest."""
        return self.step_size if self.step_size is not None else math.hypot(*self.extents) / 1024.0

    def steps(self, max_samples: int | None = None) -> Steps:
        """How rays are stepped along: no step is wider than a cell of the outermost box."""
        largest = math.hypot(*self.extents) / self.resolution * self.cells.reach
        most = self.max_samples_per_ray if max_samples is None else max_samples
        return Steps(step=self.step, cone_angle=self.cone_angle, largest=max(largest, self.step), most=most)

    @property
    def cells(self) -> OccupiedCells:
        """Which cells are occupied, as the march reads it."""
        return OccupiedCells(
            self.bits, self.blocks, self.resolution, self.translation, self.extents, contracted=self.contraction
        )

    def fraction_occupied(self) -> Float[Tensor, ""]:
        """The part of the cells that is occupied, on the grid's device; unseen cells count as empty."""
        covered = (self.n_cascades - 1) * self.resolution**3 // 8
        return unpack_cells(self.bits).sum() / (self.densities.numel() - covered)

    def samples(
        self,
        rays: RayBundle,
        budget: int | None = None,
        generator: torch.Generator | None = None,
        max_samples: int | None = None,
    ) -> PackedSamples:
        """Samples of rays between near and far where cells are occupied.

        Rays may go on where they ended: those whose samples end at `max_samples` have more from the end of the last
        one on, as their new near.

        Args:
            rays: of any shape; places among the flattened rays are what the samples know of them.
            budget: length of the row; rays from the first on that does not fit have no samples. Nothing is read back.
                None: as many as there are, which is read back.
            generator: shifts the samples of each ray together, by up to a step; None leaves them.
            max_samples: a ray ends after this many samples; None is `max_samples_per_ray`.
        """
        flat = rays.flatten()
        marched = self._marched(flat, budget, generator, max_samples)
        return _packed(flat, marched, has_padding=budget is not None)

    @torch.no_grad()
    def visible_samples(
        self,
        rays: RayBundle,
        densities_at: Callable[[RayBundle], Float[Tensor, "1 N 1"]],
        candidate_budget: int,
        budget: int,
        early_stop: float,
        generator: torch.Generator | None = None,
    ) -> tuple[PackedSamples, Int[Tensor, ""]]:
        """Samples as of `samples`, without those that others of their ray hide. Nothing is read back.

        Args:
            rays: of any shape.
            densities_at: the density, per world unit, at candidates given as rays of one sample each, of which places
                alone are to be looked at.
            candidate_budget: length of the row of candidates; rays from the first on that does not fit have no samples.
            budget: length of the row of samples that are left, likewise.
            early_stop: transmittance below which a sample is hidden.
            generator: as of `samples`.

        Returns:
            The samples, and how many candidates there were, int32.
        """
        flat = rays.flatten()
        candidates = self._marched(flat, candidate_budget, generator)
        densities = densities_at(_places_alone(flat, candidates)).flatten()
        scale = torch.linalg.vector_norm(flat.directions[0], dim=-1)
        marched = prune(candidates, densities, scale, early_stop, budget)
        return _packed(flat, marched, has_padding=True), candidates.n_used

    def _marched(
        self, flat: RayBundle, budget: int | None, generator: torch.Generator | None, max_samples: int | None = None
    ) -> Marched:
        """Where the samples of rays in one group are; as `samples`."""
        near = flat.near[0]
        jitter = torch.zeros_like(near)
        if generator is not None:
            jitter = torch.rand(near.shape, generator=generator, device=near.device)
        bounded = BoundedRays(flat.origins[0], flat.directions[0], near, flat.far[0], jitter)
        return march(bounded, self.cells, self.steps(max_samples), budget)

    @torch.no_grad()
    def update(self, step: int, density_fn: DensityFunction) -> None:
        """Look again how dense cells are, where an update is due at this training step. Nothing is read back.

        A cell's density is the larger of what it was, times `decay`, and what a random point within it has now.

        Args:
            step: the training step to come, from 0.
            density_fn: asked for at most `POINTS_AT_ONCE` points at once.
        """
        if step % self.update_interval != 0:
            return
        generator = self._draws.on(self.densities.device)
        densities = self.densities.view(-1)
        numbers = self._all_cells() if step < self.warmup_steps else self._drawn_cells(generator)
        densities.copy_(torch.where(densities < 0.0, densities, densities * self.decay))
        for part in numbers.split(POINTS_AT_ONCE):
            within = torch.rand(len(part), 3, generator=generator, device=part.device)
            found = density_fn(self._places(part, within))[:, 0].float()
            found = torch.nan_to_num(found, nan=0.0).clamp(min=0.0)
            before = densities[part]
            densities.scatter_reduce_(0, part, torch.where(before < 0.0, before, found), "amax")
        self._set_bits(self._are_occupied())

    @torch.no_grad()
    def mark_unseen(self, cameras: Cameras, near: float | Float[Tensor, "B"] = 0.0) -> None:
        """Switch cells off for good that none of the views shows: what is there has no reason to vanish by itself.

        To be called before training, where rays lie in the world (not in NDC).

        Args:
            cameras: all views of the training.
            near: views show nothing nearer to them than this, world units: one number, or one for each view.
        """
        cameras = cameras.to(self.densities.device)
        near = near.to(self.densities.device) if isinstance(near, Tensor) else near
        densities = self.densities.view(-1)
        for part in self._all_cells().split(POINTS_AT_ONCE):
            centers = self._places(part, torch.full((len(part), 3), 0.5, device=part.device))
            seen = seen_by_any(cameras, centers, self._radii(part, centers), near)
            densities[part] = torch.where(seen, densities[part], _COVERED)
        self._set_bits(unpack_cells(self.bits) & (self.densities >= 0.0))

    def _all_cells(self) -> Int[Tensor, "N"]:
        return torch.arange(self.densities.numel(), device=self.densities.device)

    def _drawn_cells(self, generator: torch.Generator) -> Int[Tensor, "N"]:
        """A quarter as many cells as there are: one of each eight in a row, and as many of the occupied.

        Both in rising order, so that neighbours are asked for together, which is much faster; some may be in both.
        """
        n_cells, device = self.densities.numel(), self.densities.device
        n = n_cells // 8
        evenly = torch.arange(0, n_cells, 8, device=device) + torch.randint(
            8, (2, n), generator=generator, device=device
        )
        total = unpack_cells(self.bits).view(-1).cumsum(dim=0, dtype=torch.int32)
        # The occupied in their order are cut into n parts of one length, with a place in each.
        within = torch.rand(n, generator=generator, device=device)
        place = (torch.arange(n, device=device, dtype=torch.float64) + within) * (total[-1].double() / n)
        of_occupied = torch.searchsorted(total, place.int().clamp(max=total[-1] - 1), right=True)
        return torch.cat([evenly[0], torch.where(total[-1] > 0, of_occupied, evenly[1])])

    def _places(self, number: Int[Tensor, "N"], within: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Points of the world at places in [0, 1]^3 within cells."""
        number = number.int() if self.densities.numel() < 2**31 else number  # whose division is the faster one
        cascade, cell = number // self.resolution**3, number % self.resolution**3
        local = (cell_coordinates(cell, self.resolution) + within) * (2.0 / self.resolution) - 1.0
        if self.contraction:
            local = uncontract(CONTRACTED_RADIUS * local, Norm.LINF)
        elif self.n_cascades > 1:
            local = local * torch.exp2(cascade.float())[:, None]
        axes = [local[:, a] * (0.5 * self.extents[a]) + self.translation[a] for a in range(3)]
        return torch.stack(axes, dim=-1)

    def _magnification(self) -> Float[Tensor, "C cells"] | Float[Tensor, "C 1"]:
        """How much larger than those of the innermost box the steps are that cross each cell, with a cone."""
        device = self.densities.device
        if not self.contraction:
            return torch.exp2(torch.arange(self.n_cascades, device=device, dtype=torch.float32))[:, None]
        local = (cell_coordinates(self._all_cells(), self.resolution) + 0.5) * (2.0 / self.resolution) - 1.0
        s = CONTRACTED_RADIUS * local.abs().amax(dim=-1)
        return torch.where(s > 1.0, 1.0 / (CONTRACTED_RADIUS - s), 1.0)[None]

    def _radii(self, number: Int[Tensor, "N"], centers: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Radii of balls around cells."""
        radius = 0.5 * math.hypot(*self.extents) / self.resolution
        if not self.contraction:
            return radius * torch.exp2((number // self.resolution**3).float())
        # A cell reaches from s to s + h; r = 1 / (2 - s), so that the outermost cells have no end.
        half, center = (torch.tensor(value, device=centers.device) for value in (self.extents, self.translation))
        r = ((centers - center) / (0.5 * half)).abs().amax(dim=-1).clamp(min=1.0)
        left = (1.0 / r - CONTRACTED_RADIUS / self.resolution).clamp(min=1e-6)
        return 2.0 * radius * r / left

    def _are_occupied(self) -> Bool[Tensor, "C cells"]:
        """Whether a step through each cell is thick enough."""
        widths = self.step * (
            self._magnification() if self.cone_angle > 0.0 else torch.ones_like(self.densities[:, :1])
        )
        is_seen = self.densities >= 0.0
        thickness = self.densities.clamp(min=0.0) * widths
        n_seen = self._sums(is_seen)
        nearest = (n_seen > 0).int().argmax(dim=0, keepdim=True)  # 0, unless no view sees any of the box
        mean = (self._sums(thickness) / n_seen.clamp(min=1)).gather(0, nearest)
        return is_seen & (thickness >= (_OF_MEAN * mean).clamp(max=self.occupancy_threshold))

    def _sums(self, values: Shaped[Tensor, "C cells"]) -> Shaped[Tensor, "..."]:
        """The sum of the values of each box, from the innermost on; contracted, of the box and of all space.

        In the even fog that training begins with, steps far away are thick: a mean of all cells would leave out the
        box, and nothing could grow where nobody looks.
        """
        if not self.contraction:
            return values.sum(dim=1)
        middle = slice(self.resolution // 4, 3 * self.resolution // 4)
        box = values.view([self.resolution] * 3)[middle, middle, middle]
        return torch.stack([box.sum(), values.sum()])

    def _set_bits(self, occupied: Bool[Tensor, "C cells"]) -> None:
        self.bits.copy_(pack_cells(occupied))
        self.blocks.copy_(occupied_blocks(self.bits))


def _derive_blocks(grid: nn.Module, _: object) -> None:
    """After a state was loaded: what is not saved follows from what is."""
    assert isinstance(grid, OccupancyGrid)
    grid.blocks.copy_(occupied_blocks(grid.bits))


def _packed(flat: RayBundle, marched: Marched, has_padding: bool) -> PackedSamples:
    """The samples with what they know of their rays."""
    return PackedSamples(
        samples=_one_sample_rays(flat, marched, has_padding),
        ray_index=marched.ray_index,
        starts=marched.starts,
        ends=marched.ends,
        first=marched.first,
        count=marched.count,
        complete=marched.complete,
        n_used=marched.n_used,
    )


def _places_alone(flat: RayBundle, marched: Marched) -> RayBundle:
    """`_one_sample_rays` for densities, which depend on places alone: pixels and cameras are those of any ray, and view
    directions those of the rays."""
    origins, directions = gather_rows((flat.origins[0], flat.directions[0]), marched.ray_index)
    starts, ends = marched.starts[None], marched.ends[None]
    return RayBundle(
        origins=origins[None],
        directions=directions[None],
        view_directions=directions[None],
        near=starts,
        far=ends,
        xy=flat.xy[:, :1].expand(-1, starts.shape[1], -1),
        camera_index=flat.camera_index[:, :1].expand(-1, starts.shape[1]),
        lengths=(0.5 * (starts + ends))[..., None],
        n_used=marched.n_used,
    )


def _one_sample_rays(flat: RayBundle, marched: Marched, has_padding: bool) -> RayBundle:
    """A ray for each sample of the row, with a length in the middle of its interval; padding has the last ray's."""
    known = (flat.origins, flat.directions, flat.view_directions, flat.xy, flat.camera_index)
    known = known if flat.radii is None else (*known, flat.radii)
    origins, directions, view_directions, xy, camera_index, *radii = (
        values[None] for values in gather_rows(tuple(values[0] for values in known), marched.ray_index)
    )
    starts, ends = marched.starts[None], marched.ends[None]
    return RayBundle(
        origins=origins,
        directions=directions,
        view_directions=view_directions,
        near=starts,
        far=ends,
        xy=xy,
        camera_index=camera_index,
        lengths=(0.5 * (starts + ends))[..., None],
        bins=torch.stack([starts, ends], dim=-1) if radii else None,
        radii=radii[0] if radii else None,
        n_used=marched.n_used if has_padding else None,
    )
