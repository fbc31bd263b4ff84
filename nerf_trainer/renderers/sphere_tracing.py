"""Where rays meet a surface that is given by its signed distance."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerf_trainer.config import Configurable
from nerf_trainer.errors import ConfigError
from nerf_trainer.geometry.spheres import closest_approach, ray_sphere
from nerf_trainer.ops.sphere_tracing import DistanceAlongRays, Marched, first_crossing, march, secant
from nerf_trainer.ops.stepfun import jitter, spaced
from nerf_trainer.randomness import RandomStream

POINTS_AT_ONCE = 131_072
"""Most points whose distance is asked at once while rays are sampled: bounds memory, and changes nothing else."""


@dataclass(frozen=True)
class SurfaceHits:
    """What tracing found on N rays."""

    hit: Bool[Tensor, "N"]
    """Whether the ray meets the surface."""
    lengths: Float[Tensor, "N"]
    """The distance of the first meeting; 0 where there is none."""
    lowest: Float[Tensor, "N"]
    """The distance at which the signed distance is least, as far as it was looked for."""


class RayTracing(Configurable, torch.nn.Module):
    """Sphere tracing from both ends of a ray's way through a bounding sphere; where that doesn't converge, samples and
    the secant method (Yariv et al. 2020, supplementary 5.3).
    """

    sdf_threshold: float = 5e-5
    """Signed distance from which a point counts as surface, world units."""
    line_search_step: float = 0.5
    """Part of a step that is left after it was found to land inside."""
    line_step_iters: int = 1
    """How often a step that lands inside is shortened."""
    sphere_tracing_iters: int = 10
    """Most steps of sphere tracing; fewer when all rays are done."""
    n_steps: int = 100
    """Samples along a ray whose sphere tracing doesn't converge, and of the search for the least signed distance."""
    n_secant_steps: int = 8
    """Iterations of the secant method between two samples."""

    def __post_init__(self) -> None:
        if self.sdf_threshold <= 0.0:
            raise ConfigError(f"sdf_threshold: {self.sdf_threshold}, expected a distance above 0, as 5e-5")
        if not 0.0 <= self.line_search_step < 1.0:
            raise ConfigError(f"line_search_step: {self.line_search_step}, expected 0 or more and below 1")
        for name, n, fewest in (
            ("line_step_iters", self.line_step_iters, 0),
            ("sphere_tracing_iters", self.sphere_tracing_iters, 1),
            ("n_steps", self.n_steps, 2),
            ("n_secant_steps", self.n_secant_steps, 0),
        ):
            if n < fewest:
                raise ConfigError(f"{name}: {n}, expected a whole number of at least {fewest}")
        self._places = RandomStream("minimum")

    @torch.no_grad()
    def forward(
        self,
        distance: DistanceAlongRays,
        origins: Float[Tensor, "N 3"],
        directions: Float[Tensor, "N 3"],
        center: Float[Tensor, "3"],
        radius: float,
        search_lowest: bool = False,
        stops: Bool[Tensor, "N"] | None = None,
    ) -> SurfaceHits:
        """Trace N rays within a sphere.

        A surface that reaches out of the sphere is cut off by it: a ray that is inside the surface where it enters the
        sphere, or where it starts, meets the surface there.

        Args:
            distance: the signed distance along these rays.
            directions: of unit length.
            center: of the bounding sphere, world units.
            radius: of the bounding sphere, world units.
            search_lowest: look for the least signed distance at `n_steps` random places of each ray, behind the surface
                where it meets one; otherwise it is the least of what tracing came by. A ray that misses the sphere has
                it at its point nearest to the centre.
            stops: rays that are not searched behind a surface that they meet; None searches all. It stands for nothing
                where `search_lowest` is false.
        """
        near, far, meets = ray_sphere(origins, directions, center, radius)
        marched = march(
            distance,
            near,
            far,
            meets,
            self.sdf_threshold,
            self.sphere_tracing_iters,
            self.line_search_step,
            self.line_step_iters,
        )
        hit, lengths = marched.arrived.clone(), marched.start.clone()
        lowest, f_lowest = marched.lowest.clone(), marched.f_lowest.clone()
        brackets = _overshot(marched, self.sdf_threshold)
        rows = marched.unfinished.nonzero()[:, 0]
        if rows.shape[0] > 0:
            t = spaced(marched.start[rows], marched.end[rows], self.n_steps)
            f = _in_pieces(distance, rows, t)
            hit[rows], crossings = _crossing(rows, t, f)
            brackets = _Brackets(*(torch.cat(pair) for pair in zip(brackets, crossings, strict=True)))
            _lower_(lowest, f_lowest, rows, t, f)
        if brackets.rows.shape[0] > 0:
            lengths[brackets.rows] = secant(distance, *brackets, self.n_secant_steps)
        if search_lowest:
            rows = (meets if stops is None else meets & ~(hit & stops)).nonzero()[:, 0]
            if rows.shape[0] > 0:
                from_ = torch.where(hit, lengths, near)[rows]
                t = jitter(spaced(from_, far[rows], self.n_steps), self._places.on(far.device))
                _lower_(lowest, f_lowest, rows, t, _in_pieces(distance, rows, t))
        lowest = torch.where(meets, lowest, closest_approach(origins, directions, center))
        return SurfaceHits(hit=hit, lengths=torch.where(hit, lengths, 0.0), lowest=lowest)


class _Brackets(NamedTuple):
    """Places of M rays that have the surface between them, for the secant method."""

    rows: Int[Tensor, "M"]
    """The rays."""
    t_out: Float[Tensor, "M"]
    """Outside."""
    f_out: Float[Tensor, "M"]
    """The signed distance there."""
    t_in: Float[Tensor, "M"]
    """Inside."""
    f_in: Float[Tensor, "M"]
    """The signed distance there."""


def _overshot(marched: Marched, threshold: float) -> _Brackets:
    """Rays whose last step ended inside: the surface lies between there and the step's start."""
    overshot = marched.arrived & (marched.f_start < -threshold) & marched.f_before.isfinite()
    rows = overshot.nonzero()[:, 0]
    return _Brackets(rows, marched.before[rows], marched.f_before[rows], marched.start[rows], marched.f_start[rows])


def _crossing(
    rows: Int[Tensor, "M"], t: Float[Tensor, "M S"], f: Float[Tensor, "M S"]
) -> tuple[Bool[Tensor, "M"], _Brackets]:
    """Whether samples show that rays meet the surface, and between which two of them those that do."""
    hit, before, after = first_crossing(t, f)
    crossing = hit.nonzero()[:, 0]
    out, in_ = (crossing, before[crossing]), (crossing, after[crossing])
    return hit, _Brackets(rows[crossing], t[out], f[out], t[in_], f[in_])


def _in_pieces(distance: DistanceAlongRays, rows: Int[Tensor, "M"], t: Float[Tensor, "M S"]) -> Float[Tensor, "M S"]:
    rays_at_once = max(1, POINTS_AT_ONCE // t.shape[-1])
    pieces = zip(rows.split(rays_at_once), t.split(rays_at_once), strict=True)
    return torch.cat([distance(piece, at) for piece, at in pieces])


def _lower_(
    lowest: Float[Tensor, "N"],
    f_lowest: Float[Tensor, "N"],
    rows: Int[Tensor, "M"],
    t: Float[Tensor, "M S"],
    f: Float[Tensor, "M S"],
) -> None:
    """Put the least of f, and its place, where it is below what is known of a ray."""
    least, index = f.min(dim=-1)
    better = least < f_lowest[rows]
    at = t.gather(-1, index[:, None])[:, 0]
    lowest[rows], f_lowest[rows] = torch.where(better, at, lowest[rows]), torch.minimum(least, f_lowest[rows])
