"""Names of losses, and their weighted sum: the objective."""

import difflib
from collections.abc import Iterable, Mapping

from torch import Tensor

from nerf_trainer.errors import ConfigError

LOSS = "loss_"
PREV_STAGE = "prev_stage_"


def stage_names(names: Iterable[str], n_prev_stages: int = 0) -> tuple[str, ...]:
    """`loss_<name>` of each, then `loss_prev_stage_<name>` of each, as many times over as there are coarser passes."""
    names = tuple(names)
    return tuple(LOSS + PREV_STAGE * stage + name for stage in range(n_prev_stages + 1) for name in names)


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor | None:
    """Sum of the losses that are there times their weights; None where no loss has a weight other than 0."""
    terms = [losses[name] * weight for name, weight in weights.items() if weight != 0 and name in losses]
    return sum(terms[1:], start=terms[0]) if terms else None


def check_loss_weights(
    weights: Mapping[str, float], known: Iterable[str], producible: Iterable[str], key: str = "loss_weights"
) -> tuple[str, ...]:
    """Look through weights for names that mean nothing and for losses that will not come.

    Args:
        weights: a weight for each loss, by its full name.
        known: names of all losses; the names of coarser passes follow from them.
        producible: names of the losses that this model, on this data, produces, those of coarser passes among them.
        key: the configuration key of `weights`, for messages.

    Returns:
        a notice, one line each, of every known loss with a weight that is not producible.

    Raises:
        ConfigError: a name is no loss (weight 0 or not), or a weight is not a finite number.
    """
    known, producible = set(known), set(producible)
    for name, weight in weights.items():
        if _finest(name) not in known:
            raise ConfigError(f"{key}.{name}: not a loss{_hint(name, known | producible)}")
        if not abs(weight) < float("inf"):
            raise ConfigError(f"{key}.{name}: {weight} is not a finite number; give a weight such as 1.0")
    return tuple(
        f"{key}.{name}: this model and data never produce it; its weight {weight:g} does nothing"
        for name, weight in weights.items()
        if weight != 0 and name not in producible
    )


def _finest(name: str) -> str:
    """The name that the finest pass gives the same loss."""
    if not name.startswith(LOSS + PREV_STAGE):
        return name
    rest = name.removeprefix(LOSS)
    while rest.startswith(PREV_STAGE):
        rest = rest.removeprefix(PREV_STAGE)
    return LOSS + rest


def _hint(name: str, known: set[str]) -> str:
    """What was probably meant; a name that lacks only its `loss_` is the commonest mistake."""
    if LOSS + name in known:
        return f"; did you mean '{LOSS}{name}'?"
    candidates = sorted(known | {LOSS + PREV_STAGE + other.removeprefix(LOSS) for other in known})
    nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if nearest:
        return f"; did you mean '{nearest[0]}'?"
    return f"; it can be {', '.join(sorted(known))}"
