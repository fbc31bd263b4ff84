"""Names of losses, and their weighted sum: the objective."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from nerf_trainer.errors import ConfigError, keyed_line, shown, unknown_name

LOSS = "loss_"
PREV_STAGE = "prev_stage_"


def stage_names(names: Iterable[str], n_prev_stages: int = 0) -> tuple[str, ...]:
    """`loss_<name>` of each, then `loss_prev_stage_<name>` of each, as many times over as there are coarser passes."""
    names = tuple(names)
    return tuple(LOSS + PREV_STAGE * stage + name for stage in range(n_prev_stages + 1) for name in names)


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor | None:
    """Sum of the losses that are there times their weights; None where no loss has a weight other than 0."""
    present = [(losses[name], weight) for name, weight in weights.items() if weight != 0 and name in losses]
    terms = [loss if weight == 1 else loss * weight for loss, weight in present]
    return sum(terms[1:], start=terms[0]) if terms else None


def check_loss_weights(weights: Mapping[str, float], known: Iterable[str], key: str = "loss_weights") -> None:
    """Refuse names that mean nothing and weights that are no numbers.

    Args:
        weights: a weight for each loss, by its full name.
        known: names of all losses; the names of coarser passes follow from them.
        key: the configuration key of `weights`, for messages.

    Raises:
        ConfigError: a name is no loss (weight 0 or not), or a weight is not a finite number.
    """
    known = tuple(known)
    for name, weight in weights.items():
        if _finest(name) not in known:
            of_coarser = (LOSS + PREV_STAGE + other.removeprefix(LOSS) for other in known)
            problem = unknown_name(name, "is not a known loss", (*known, *of_coarser))
            raise ConfigError(keyed_line(f"{key}.{name}", problem))
        if not abs(weight) < float("inf"):
            raise ConfigError(keyed_line(f"{key}.{name}", f"{shown(weight)}, expected a finite number such as 1.0"))


def idle_weights(weights: Mapping[str, float], producible: Iterable[str], key: str = "loss_weights") -> tuple[str, ...]:
    """A notice, one line each, of every loss that has a weight and will not come.

    Args:
        weights: a weight for each loss, by its full name.
        producible: names of the losses that this model, on this data, produces, those of coarser passes among them.
        key: the configuration key of `weights`, for messages.
    """
    producible = set(producible)
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
