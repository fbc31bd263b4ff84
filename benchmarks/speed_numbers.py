"""What the records say of speed, for the pages that show it."""

import json
import statistics
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

MISSING = "not measured"
TARGETS_DB = (30, 33, 35, 36)


def shown(value: str | None, unit: str) -> str:
    """A number with its unit, or that there is none."""
    return MISSING if value is None else f"{value} {unit}"


class Numbers:
    """Reads a folder of records.

    Args:
        folder: the records; those of GPUs count, but for the start-up's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def has(self, name: str) -> bool:
        """Whether there is a record of this name."""
        return self._read(name) is not None

    def _rows(self, benchmark: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Records of a benchmark, whatever they are called, with their rows, by date."""
        found = [json.loads(path.read_text()) for path in self._folder.glob("*.json")]
        for record in sorted(found, key=lambda record: record.get("date", "")):
            if record.get("benchmark") == benchmark:
                for row in record.get("rows", []):
                    yield record, row

    @cached_property
    def peers_classic(self) -> dict[str, Any]:
        """The peers' steps."""
        return self._read("peers_classic") or {"rows": []}

    def peers_in_turns(self) -> list[dict[str, Any]]:
        """The records of benchmarks.peers, a peer each."""
        return [json.loads(path.read_text()) for path in sorted(self._folder.glob("peer_*.json"))]

    @cached_property
    def peers_quality(self) -> dict[str, Any]:
        """The peers' PSNR against seconds."""
        return self._read("peers_time_to_quality") or {"rows": []}

    @cached_property
    def optimisations(self) -> list[dict[str, str]]:
        """What was tried."""
        return (self._read("optimisations") or {"rows": []})["rows"]

    def classic_step(self, precision: str, rays: int, captured: bool) -> dict[str, Any] | None:
        """The row of nerf_step; rows from before steps were captured are eager ones. The fastest kernels count."""
        wanted = precision, rays, captured
        rows = [
            row
            for row in (self._read("nerf_step") or {"rows": []})["rows"]
            if (row["precision"], row["rays"], row.get("captured", False)) == wanted
        ]
        return min(rows, key=lambda row: row["ms_median"]) if rows else None

    def floor(self, precision: str) -> str:
        """Milliseconds of the classic step's products at what a product reached."""
        rows = (self._read("ceilings") or {"rows": []})["rows"]
        found = [row["classic_step_ms_1024_rays"] for row in rows if row["precision"] == precision]
        return f"{found[0]:.2f}" if found else MISSING

    def peak_gib(self, captured: bool) -> str:
        """Peak memory of a process that takes classic steps of 1024 rays in bf16 alone; of one with others before."""
        rows = [*(self._read("nerf_step_bf16") or {"rows": []})["rows"], self.classic_step("bf16", 1024, captured)]
        found = [row["peak_gib"] for row in rows if row is not None and row["captured"] == captured]
        return f"{found[0]:.2f}" if found else MISSING

    def fast_step(self) -> str | None:
        """Milliseconds of a step of ngp_blender in bf16 in its training on lego."""
        found = [run["ms_per_step"] for run in self.runs("ngp_blender") if "ms_per_step" in run]
        return f"{statistics.median(found):.2f} ms" if found else None

    def final_psnr(self, recipe: str) -> str | None:
        """PSNR on all test views at the end of a time-to-quality run, the median of the seeds."""
        found = [run["all_views"]["psnr_full_image"] for run in self.runs(recipe) if "all_views" in run]
        return f"{statistics.median(found):.2f} dB" if found else None

    def runs(self, recipe: str) -> list[dict[str, Any]]:
        """The seeds of a time-to-quality record."""
        return (self._read(f"time_to_quality_{recipe}") or {"runs": []})["runs"]

    def seconds_to(self, recipe: str, kind: str = "steady_seconds_to") -> dict[int, str]:
        """For each PSNR that all seeds reached: median training seconds, and how far the seeds are apart; `seconds_to`
        are those with capturing and compiling.
        """
        found: dict[int, str] = {}
        for target in TARGETS_DB:
            seconds = [run.get(kind, {}).get(str(target)) for run in self.runs(recipe)]
            reached = [value for value in seconds if value is not None]
            if reached and len(reached) == len(seconds):
                first, last = f"{min(reached):.1f}", f"{max(reached):.1f}"
                found[target] = f"{statistics.median(reached):.1f}" + (f" ({first} to {last})" if first != last else "")
        return found

    def waits(self, recipe: str, what: str) -> str | None:
        """Seconds of `outside_training` or `capture_and_compilation`, with an empty cache of kernels and a full one."""
        waits = (self._read(f"time_to_quality_{recipe}") or {}).get("waits")
        return None if waits is None else " / ".join(f"{waits[name][what]:.1f}" for name in ("cold", "warm"))

    def from_process_start(self, recipe: str, target: int) -> str | None:
        """Seconds from the process's start to a PSNR, evaluation left out: with an empty or a full cache of kernels."""
        found = (self._read(f"time_to_quality_{recipe}") or {}).get("from_process_start", {}).get(str(target))
        return None if found is None else " / ".join(f"{found[name]:.1f}" for name in ("cold", "warm"))

    def peer_seconds(self, who: str, target: float) -> str:
        """Seconds of a peer's first point with at least this PSNR."""
        points = next((row["points"] for row in self.peers_quality["rows"] if row["who"] == who), [])
        return next((f"{seconds:g}" for seconds, psnr in points if psnr >= target), "")

    def _view(self, recipe: str) -> dict[str, Any] | None:
        rows = [
            row
            for record, row in self._rows("render_view")
            if recipe in record.get("run", record.get("recipe", "")) and row["size"] == 800
            if row["precision"] == "bf16"
        ]
        return rows[-1] if rows else None

    def view_seconds(self, recipe: str) -> str | None:
        """Seconds of a view of 800x800 in bf16, of the newest record."""
        row = self._view(recipe)
        return None if row is None else f"{row['s_median']:.2f} s"

    def views_per_s(self, recipe: str) -> str | None:
        """Views of 800x800 a second."""
        row = self._view(recipe)
        return None if row is None else f"{row['views_per_s']:.0f} /s"

    def efficiency(self, recipe: str) -> str | None:
        """Weak scaling from one GPU to two."""
        rows = [row for _, row in self._rows("ddp_scaling") if row["recipe"] == recipe]
        return f"{100 * rows[-1]['efficiency']:.1f} %" if rows else None

    def streamed(self) -> str | None:
        """Speed of a streamed set against a resident one, of both recipes."""
        rows = (self._read("growth_streamed") or {"rows": []})["rows"]
        found = ", ".join(f"{100 * row['speed_ratio']:.0f} % (`{row['recipe']}`)" for row in rows)
        return found or None

    def training(self, name: str) -> str | None:
        """Seconds of a whole training, from the process's start to its end, with compiled kernels and without them, and
        what it reached on views held out.
        """
        cold, warm = self._read(name), self._read(f"{name}_warm")
        if cold is None or warm is None:
            return None
        seconds, first = (record["wall_seconds"]["train"] for record in (warm, cold))
        psnr = warm["test"][0]["metrics"]["psnr_full_image"]
        return f"{seconds:.0f} s ({first:.0f} s where kernels are compiled first); {psnr:.1f} dB"

    def start(self, name: str, unit: str) -> str | None:
        """A number of the start-up's record."""
        value = (self._read("start_up") or {}).get(name)
        return None if value is None else f"{value:.2f} {unit}"
