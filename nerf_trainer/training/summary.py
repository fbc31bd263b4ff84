"""The end of a run in a few lines: what it reached, what it cost, where its files are."""

from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from nerf_trainer.evaluation.evaluator import lpips_net
from nerf_trainer.evaluation.summaries import metric_label
from nerf_trainer.training.loop import LoopResult
from nerf_trainer.training.metrics_log import Row
from nerf_trainer.training.runtime import Runtime

_BOX_WIDTH = 80


def summarize(folder: Path, runtime: Runtime, result: LoopResult, seconds: float) -> None:
    """A box at the end, no wider than the screen: the metrics, the costs and the files."""
    lines = [
        f"step {result.step}, epoch {result.epoch}; {seconds:.0f} s; peak memory {_gib(runtime.peak_memory_bytes)}"
    ]
    for split, row in result.last_rows.items():
        net = lpips_net(folder, row["step"]) if split == "test" else None
        values = "  ".join(
            f"{metric_label(name.removeprefix('loss_'), net)} {value:.4g}" for name, value in scores(row).items()
        )
        lines.append(f"{split}: {values or 'no metrics'}")
    files = ("expconfig.yaml", "metrics.jsonl", "train_stats.png", "results_test.json", "checkpoints")
    lines += ["", f"in {folder}:", "  " + "  ".join(name for name in files if (folder / name).exists())]
    width = min(_BOX_WIDTH, max(len(line) for line in lines) + 4)
    text = Text("\n".join(lines), overflow="fold")
    Console(width=width, highlight=False).print(Panel(text, title="finished"))


def scores(row: Row) -> dict[str, float]:
    """What people compare of a line of the log."""
    kinds = ("psnr", "ssim", "lpips")
    scores = {name: v for name, v in row.items() if name == "objective" or any(kind in name for kind in kinds)}
    return {name: value for name, value in scores.items() if value is not None}


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
