"""Steps of the fast path on its own scene with one thing changed at a time, one after another in one process.

    BLENDER_DATASET_ROOT=/data BLENDER_SINGLESEQ_CLASS=lego python -m benchmarks.ngp_variants
    python -m benchmarks.ngp_variants --only recipe 16x2 --profile 64

Each variant trains `--train` steps, so that the grid has found the scene, before `--steps` are timed as by
benchmarks.ngp_step. Some change options of the recipe, as a user may; others what a kernel does, which no option
sets: how many levels of the hash grid a program takes, how many points, and whether rays are marched once. How many
candidates and samples a step has differs by a part in ten from one training to the next: compare those first.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.growth import MODEL, RAYS
from benchmarks.ngp_step import Training, timed
from benchmarks.record import add_options, passport, write
from benchmarks.step_ops import profiled
from benchmarks.timing import fresh_memory, table
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.training.runtime import Precision

_FIELD = f"{MODEL}.implicit_function_HashGridImplicitFunction_args"
_OPTIMIZER = "optimizer_factory_ImplicitronOptimizerFactory_args"
COLUMNS = ("variant", "ms_median", "ms_p10", "ms_p90", "ms_in_a_row", "samples", "candidates", "psnr", "peak_gib")


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe."""

    words: Sequence[str] = ()
    """Overrides."""
    levels_together: int | None = None
    """Most levels of the hash grid that a program takes."""
    most_notes: int | None = None
    """Room for notes of a march; 0: rays are marched twice."""
    points: int | None = None
    """Points of a program of the hash encoding."""


def layout(n_levels: int, n_features: int, log2_rows: int, finest: int = 384) -> list[str]:
    """Overrides of the encoding."""
    values = {"n_levels": n_levels, "n_features_per_level": n_features, "log2_hashmap_size": log2_rows}
    return [f"{_FIELD}.{name}={value}" for name, value in (values | {"finest_resolution": finest}).items()]


VARIANTS = {
    "recipe": Variant(),
    "recipe, marched twice": Variant(most_notes=0),
    "recipe, levels alone": Variant(levels_together=1),
    "recipe, 128 points a program": Variant(points=128),
    "recipe, 512 points a program": Variant(points=512),
    "recipe, average of the weights": Variant([f"{_OPTIMIZER}.average_decay=0.99"]),
    "recipe, 24,576 rays": Variant([f"{RAYS}=24576"]),
    "8x4, 2^19 rows": Variant(layout(8, 4, 19)),
    "16x2": Variant(layout(16, 2, 20)),
    "16x2, marched twice": Variant(layout(16, 2, 20), most_notes=0),
    "16x2, levels alone": Variant(layout(16, 2, 20), levels_together=1),
    "16x2, 2 levels together": Variant(layout(16, 2, 20), levels_together=2),
}


@contextmanager
def kernels_of(variant: Variant) -> Iterator[None]:
    """The variant's kernels are in use."""
    from nerf_trainer.ops.kernels import hash_encode, march  # here, where Triton is asked for

    changes = (
        (hash_encode, "LEVELS_TOGETHER", variant.levels_together),
        (hash_encode, "_BLOCK", variant.points),
        (march, "MOST_NOTES", variant.most_notes),
    )
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, value in changes:
        if value is not None:
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one variant, with its kernels where they are asked for."""
    variant = VARIANTS[name]
    fresh_memory()
    with kernels_of(variant):
        training = Training([*options.words, *variant.words], Precision.bf16, True, Kernels.auto, options.scene)
        row = {"variant": name, "words": list(variant.words), **timed(training, options.train, options.steps)}
        if not training.step.is_captured:
            raise SystemExit("\n".join(training.said) or "step: eager, for there is no GPU")
        if options.profile:
            row["kernels"] = profiled(training.take, options.profile)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="overrides for all of them")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--scene", choices=("ball", "own"), default="own", help="a ball, or the recipe's own data")
    parser.add_argument("--train", type=int, default=3000, help="steps before those that are timed")
    parser.add_argument("--steps", type=int, default=500, help="timed steps")
    parser.add_argument("--profile", type=int, default=0, help="record the kernels of so many more steps")
    add_options(parser)
    options = parser.parse_args()
    record: dict[str, Any] = {"benchmark": "ngp_variants", **passport(options.commit), "words": options.words}
    record |= {"scene": options.scene, "train": options.train, "steps": options.steps, "rows": []}
    for name in options.only:
        record["rows"].append(measure(name, options))
        print(table(record["rows"][-1:], COLUMNS).splitlines()[-1], flush=True)
        write("ngp_variants", record, options.out)
    print(table(record["rows"], COLUMNS))


if __name__ == "__main__":
    main()
