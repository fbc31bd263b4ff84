"""Finding where rays first meet a surface that is the zero set of a signed distance.

Symbols: t is a distance along a ray and f the signed distance there, positive outside; a row is the number of a ray
among N. A `DistanceAlongRays` gives f of some rows, each at S distances of its own. Nothing here is differentiable with
respect to the surface: that is what `surface_lengths` is for. The rays left to do are gathered in each step, so that
shapes depend on values and a step that uses this can't be captured.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerf_trainer.ops.deterministic import running_sum

DistanceAlongRays = Callable[[Int[Tensor, "M"], Float[Tensor, "M S"]], Float[Tensor, "M S"]]
"""Signed distances (M S) of the rays `rows` (M) at `t` (M S)."""

MIN_SLOPE = 1e-4
"""Floor of |df/dt| at a surface point: where a ray grazes, the surface's point moves without bound."""


@dataclass(frozen=True)
class Marched:
    """Where sphere tracing stands on N rays."""

    start: Float[Tensor, "N"]
    """How far the way from the front got."""
    end: Float[Tensor, "N"]
    """How far the way from the back got."""
    before: Float[Tensor, "N"]
    """The last place before `start` that is outside."""
    f_start: Float[Tensor, "N"]
    """f at `start`; infinite on rays that were left out."""
    f_before: Float[Tensor, "N"]
    """f at `before`; infinite where there was no step."""
    arrived: Bool[Tensor, "N"]
    """Whether f is at most the threshold at `start`."""
    unfinished: Bool[Tensor, "N"]
    """Whether neither a surface was reached nor the whole ray seen."""
    lowest: Float[Tensor, "N"]
    """Where f was least of all the places looked at."""
    f_lowest: Float[Tensor, "N"]
    """f at `lowest`."""


def march(
    distance: DistanceAlongRays,
    near: Float[Tensor, "N"],
    far: Float[Tensor, "N"],
    meets: Bool[Tensor, "N"],
    threshold: float,
    n_iterations: int,
    line_search_step: float,
    n_line_steps: int,
) -> Marched:
    """Sphere tracing from both ends of [near, far] (Hart 1996; Yariv et al. 2020, supplementary 5.3).

    Each iteration steps by f. A step that lands inside is shortened by (1 - line_search_step) / 2^k of itself in the
    k-th of at most `n_line_steps` corrections. A way ends where f is at most the threshold, or where both ways met; the
    one from the back ends with the one from the front. f may be wrong by a factor, but where it is more than twice the
    true distance, steps pass through what is there.

    Args:
        meets: the rays to trace.
        threshold: f from which a point counts as surface, world units.
    """
    n = near.shape[0]
    # The ways from the front, then those from the back.
    t = torch.cat([near, far])
    sign = torch.ones_like(t)
    sign[n:] = -1.0
    row = torch.arange(n, device=t.device).repeat(2)
    f = torch.full_like(t, torch.inf)
    moving = meets.repeat(2)
    ways = moving.nonzero()[:, 0]
    f[ways] = distance(row[ways], t[ways, None])[:, 0]
    before, f_before = t.clone(), torch.full_like(t, torch.inf)
    lowest, f_lowest = t.clone(), f.clone()
    for iteration in range(n_iterations + 1):
        on = moving & (f > threshold)
        apart = on[:n] & (t[:n] < t[n:])
        moving = on & apart.repeat(2)
        ways = moving.nonzero()[:, 0]
        if iteration == n_iterations or ways.shape[0] == 0:
            break
        before[ways], f_before[ways] = t[ways], f[ways]
        t[ways], f[ways] = _stepped(distance, row[ways], t[ways], f[ways], sign[ways], line_search_step, n_line_steps)
        better = f < f_lowest
        lowest, f_lowest = torch.where(better, t, lowest), torch.where(better, f, f_lowest)
    front = f_lowest[:n] <= f_lowest[n:]
    return Marched(
        start=t[:n],
        end=t[n:],
        before=before[:n],
        f_start=f[:n],
        f_before=f_before[:n],
        arrived=meets & (f[:n] <= threshold) & (t[:n] <= far),
        unfinished=moving[:n],
        lowest=torch.where(front, lowest[:n], lowest[n:]),
        f_lowest=torch.minimum(f_lowest[:n], f_lowest[n:]),
    )


def _stepped(
    distance: DistanceAlongRays,
    rows: Int[Tensor, "M"],
    t: Float[Tensor, "M"],
    f: Float[Tensor, "M"],
    sign: Float[Tensor, "M"],
    line_search_step: float,
    n_line_steps: int,
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"]]:
    """t and f after a step of f along each way, shortened where it lands inside."""
    step = sign * f
    t_new = t + step
    f_new = distance(rows, t_new[:, None])[:, 0]
    inside = (f_new < 0.0).nonzero()[:, 0] if n_line_steps > 0 else rows[:0]
    if inside.shape[0] > 0:
        # All corrections at once, of which the first that is outside counts, or the last: one call for all of them.
        halves = 0.5 ** torch.arange(n_line_steps, device=t.device, dtype=t.dtype)
        tries = t_new[inside, None] - step[inside, None] * ((1.0 - line_search_step) * running_sum(halves, dim=0))
        f_tries = distance(rows[inside], tries)
        outside = f_tries >= 0.0
        outside[:, -1] = True
        chosen = outside.int().argmax(dim=-1, keepdim=True)
        t_new[inside], f_new[inside] = tries.gather(-1, chosen)[:, 0], f_tries.gather(-1, chosen)[:, 0]
    return t_new, f_new


def first_crossing(
    t: Float[Tensor, "M S"], f: Float[Tensor, "M S"]
) -> tuple[Bool[Tensor, "M"], Int[Tensor, "M"], Int[Tensor, "M"]]:
    """Whether f gets below 0 along each ray, and the two neighbouring samples between which it first does.

    The second of the pair is the first sample inside; where that is the ray's first sample, the pair is twice that.
    Both are 0 where f stays above.
    """
    inside = f < 0.0
    after = inside.int().argmax(dim=-1)
    return inside.any(dim=-1), (after - 1).clamp(min=0), after


def secant(
    distance: DistanceAlongRays,
    rows: Int[Tensor, "M"],
    t_out: Float[Tensor, "M"],
    f_out: Float[Tensor, "M"],
    t_in: Float[Tensor, "M"],
    f_in: Float[Tensor, "M"],
    n_iterations: int,
) -> Float[Tensor, "M"]:
    """A zero of f between t_out, where f >= 0, and t_in, where f < 0, by the secant method that keeps its bracket.

    Where the same end stays for two iterations its f counts half (the Illinois method; Dowell and Jarratt 1971),
    without which a curved f leaves one end where it is and converges slowly.
    """

    def zero_of_chord() -> Float[Tensor, "M"]:
        part = f_out / (f_out - f_in).clamp(min=torch.finfo(f_out.dtype).tiny)
        return t_out + (t_in - t_out) * part.clamp(0.0, 1.0)

    last = torch.zeros_like(f_out)
    for _ in range(n_iterations):
        t = zero_of_chord()
        f = distance(rows, t[:, None])[:, 0]
        outside = f >= 0.0
        side = torch.where(outside, 1.0, -1.0)
        again = side == last
        f_in = torch.where(outside, torch.where(again, 0.5 * f_in, f_in), f)
        f_out = torch.where(outside, f, torch.where(again, 0.5 * f_out, f_out))
        t_out, t_in, last = torch.where(outside, t, t_out), torch.where(outside, t_in, t), side
    return zero_of_chord()


def surface_lengths(
    lengths: Float[Tensor, "*rays"], f: Float[Tensor, "*rays"], slope: Float[Tensor, "*rays"]
) -> Float[Tensor, "*rays"]:
    """The lengths unchanged, with the gradient that a surface point has when the surface moves.

    t(theta) = t - (f(x; theta) - f(x)) / (grad f . d), from differentiating f(o + t d; theta) = 0 (Yariv et al. 2020,
    equation 3).

    Args:
        lengths: where the rays meet the surface.
        f: the signed distance there, whose gradient with respect to its parameters is passed on.
        slope: grad f . d there, a constant; held `MIN_SLOPE` away from 0.
    """
    slope = torch.where(slope >= 0.0, slope.clamp(min=MIN_SLOPE), slope.clamp(max=-MIN_SLOPE)).detach()
    return lengths - (f - f.detach()) / slope
