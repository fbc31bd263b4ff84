"""Validation and tests of a run: the model on views that it wasn't trained on, and where the numbers go."""

from collections.abc import Mapping

import torch

from nerf_trainer.data.loaders import FrameLoader
from nerf_trainer.errors import DataError
from nerf_trainer.evaluation.evaluator import EvaluationContext, EvaluatorBase
from nerf_trainer.evaluation.summaries import headline
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.training.interruption import StopSignals
from nerf_trainer.training.metrics_log import FILE_NAME, Row, read_rows
from nerf_trainer.training.session import TrainingRun
from nerf_trainer.training.stats import MetricSums, Statistics


class SplitEvaluation:
    """Evaluates one run's splits; places their loaders at once.

    Args:
        run: what the loop was given.
        stats: where lines are logged.
        evaluator: scores the test views.
        signals: what ends an evaluation early, in a process that trains alone: of several, one that left would let the
            others wait for its sums.
        with_val: whether validation views will be asked for.
        with_test: whether test views will be.
    """

    def __init__(
        self,
        run: TrainingRun,
        stats: Statistics,
        evaluator: EvaluatorBase,
        signals: StopSignals,
        with_val: bool,
        with_test: bool,
    ) -> None:
        self._run = run
        self._stats = stats
        self._evaluator = evaluator
        alone, autocast = run.runtime.world_size == 1, run.runtime.autocast
        self._rendering = signals.at_once_within(autocast) if alone else autocast
        self._val = self._placed("val", run.loaders.val) if with_val else None
        self._test = self._placed("test", run.loaders.test) if with_test else None
        self.rows: dict[str, Row] = {}
        """The newest line of each split."""

    def _placed(self, name: str, loader: FrameLoader | None) -> FrameLoader | None:
        if loader is None:
            self._run.display.note(f"the data has no {name} split: there will be no {name} metrics")
            return None
        runtime = self._run.runtime
        loader.place(runtime.device, runtime.seed, runtime.rank, runtime.world_size)
        return loader

    def validate(self, model: ImplicitronModelBase, step: int, epoch: int) -> None:
        """Log the means of the model's losses over the validation views, where there are any."""
        if self._val is None:
            return
        run, sums = self._run, MetricSums(self._run.runtime.device)
        run.runtime.agree_on_buffers(model)
        model.eval()
        with torch.no_grad():
            for frames in self._val.steps(epoch):
                with self._rendering():
                    predictions = model(frames)
                objective = {} if predictions.objective is None else {"objective": predictions.objective}
                sums.add({**predictions.metrics, **objective})
        self._record("val", step, epoch, self._stats.logged(sums.read(run.runtime).values))
        run.display.evaluated(self.rows["val"])

    def test(self, model: ImplicitronModelBase, step: int, epoch: int) -> None:
        """Score the test views and write the results files, where there are any test views."""
        if self._test is None:
            return
        run, runtime = self._run, self._run.runtime
        runtime.agree_on_buffers(model)
        context = EvaluationContext(
            run.exp_dir, epoch, step, self._rendering, runtime.gather_objects, runtime.is_main, run.display.line
        )
        results = self._evaluator.run(model, self._test, context)
        if results:
            self._record("test", step, epoch, headline(results).metrics)

    def was_tested(self, step: int) -> bool:
        """Whether the log has a test of the weights of `step`."""
        return was_tested(self._run, step)

    def need_test_views(self) -> None:
        """Raise DataError where there is nothing to test on."""
        if self._test is None:
            raise DataError("eval_only: the data source has no test frames; expected a test split to evaluate")

    def _record(self, split: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        row = {"step": step, "epoch": epoch, "split": split, **values}
        self.rows[split] = row
        notice = self._stats.write(row)
        if notice:
            self._run.display.note(notice)


def was_tested(run: TrainingRun, step: int) -> bool:
    """Whether the run's log has a test of the weights of `step`."""
    rows = read_rows(run.exp_dir / FILE_NAME)
    return any(row.get("split") == "test" and row.get("step") == step for row in rows)
