"""How long the index files of a dataset in CO3D's format take to load: 100,000 frames of 500 sequences by default.

    python -m benchmarks.index_loading

writes an index of made-up annotations to a temporary folder and reads it several times, in one process and one thread.
The record has the processor's time of each reading, which other programs on the machine disturb less than the clock,
and how it divides: unpacking, parsing the JSON, checking and making annotations.
"""

import argparse
import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import passport, write
from nerf_trainer.data.co3d.index_files import read_frame_annotations, read_index_text

FRAMES_PER_SEQUENCE = 200


def made_up_frame(i: int, numbers: random.Random) -> dict[str, Any]:
    """The annotation of one frame, as long as those of CO3D v2."""
    sequence, number = f"{100 + i // FRAMES_PER_SEQUENCE}_{12000 + 37 * (i // FRAMES_PER_SEQUENCE)}_23361", i % 200
    place, draw = f"apple/{sequence}", numbers.gauss
    return {
        "sequence_name": sequence,
        "frame_number": number,
        "frame_timestamp": number * 0.0997,
        "image": {"path": f"{place}/images/frame{number:06d}.jpg", "size": [1893, 1065]},
        "depth": {
            "path": f"{place}/depths/frame{number:06d}.jpg.geometric.png",
            "scale_adjustment": 1 + draw(0, 1) ** 2,
            "mask_path": f"{place}/depth_masks/frame{number:06d}.png",
        },
        "mask": {"path": f"{place}/masks/frame{number:06d}.png", "mass": 1e5 * draw(0, 1) ** 2},
        "viewpoint": {
            "R": [[draw(0, 1) for _ in range(3)] for _ in range(3)],
            "T": [draw(0, 1) for _ in range(3)],
            "focal_length": [3 + draw(0, 0.1), 3 + draw(0, 0.1)],
            "principal_point": [0.0, 0.0],
            "intrinsics_format": "ndc_isotropic",
        },
        "meta": {"frame_type": "train_known", "frame_splits": ["fewview_train_train"], "eval_batch_maps": []},
    }


def processor_seconds(act: Callable[[], object], times: int) -> list[float]:
    """The processor's time of each of several runs."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        act()
        seconds.append(round(time.process_time() - start, 3))
    return seconds


def measure(n_frames: int, times: int, folder: Path) -> dict[str, Any]:
    """What reading an index of so many frames takes."""
    numbers = random.Random(0)
    text = json.dumps([made_up_frame(i, numbers) for i in range(n_frames)])
    file = folder / "frame_annotations.jgz"
    file.write_bytes(gzip.compress(text.encode(), compresslevel=6))
    n_read = len(read_frame_annotations(file))
    return {
        "frames": n_read,
        "megabytes_of_json": round(len(text) / 1e6, 1),
        "megabytes_on_disk": round(file.stat().st_size / 1e6, 1),
        "seconds": processor_seconds(lambda: read_frame_annotations(file), times),
        "seconds_of_unpacking": processor_seconds(lambda: read_index_text(file), times),
        "seconds_of_json_alone": processor_seconds(lambda: json.loads(text), times),
    }


def main() -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="folder of the record; default benchmarks/records")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments.frames, arguments.times, Path(folder))
    content = {"passport": passport(), **measured}
    print(json.dumps(content, indent=2))
    print(f"written to {write('index_loading', content, arguments.out)}")


if __name__ == "__main__":
    main()
