"""A launcher of your own: trains a recipe with several learning rates, one after the other, and compares the results.

    python examples/my_launcher.py --config-name quickstart exp_dir=runs/rates max_epochs=3 rates='[0.002,0.005,0.01]'

`run_hydra` reads the command line as `nerf_runner` does, recipes, overrides and flags included; what is done with the
composed configuration is up to the task. A subclass of `Experiment` adds options to the top level.
"""

from omegaconf import DictConfig

from nerf_trainer.config import build
from nerf_trainer.errors import ConfigError
from nerf_trainer.experiment import Experiment
from nerf_trainer.launch import run_hydra


class RateComparison(Experiment):
    """An experiment that is run once for each learning rate, in a folder of its own under `exp_dir`."""

    rates: tuple[float, ...] = (5e-4, 2e-3)
    """Learning rates to try."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rates or min(self.rates) <= 0.0:
            raise ConfigError(f"rates: {list(self.rates)}; expected one or more numbers above 0")


def compare(config: DictConfig, words: list[str]) -> None:
    """Train with each rate, evaluate on the test views, and print what came out, the best first."""
    rates = build(RateComparison, config).rates
    results: dict[float, float] = {}
    for rate in rates:
        one = config.copy()
        del one["rates"]
        one.exp_dir = f"{config.exp_dir}/lr-{rate:g}"
        one[f"optimizer_factory_{config.optimizer_factory_class_type}_args"].lr = rate
        one[f"training_loop_{config.training_loop_class_type}_args"].test_when_finished = True
        row = build(Experiment, one).run(one).last_rows.get("test", {})
        psnr = row.get("psnr_full_image")
        if isinstance(psnr, float):
            results[rate] = psnr
    print("\nlearning rate   test PSNR")
    for rate, psnr in sorted(results.items(), key=lambda item: item[1], reverse=True):
        print(f"{rate:<13g}   {psnr:.2f} dB")


if __name__ == "__main__":
    run_hydra(lambda: RateComparison, compare, name="my_launcher", summary="compare learning rates")
