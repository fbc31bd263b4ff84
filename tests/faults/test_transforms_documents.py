"""Row 31 again, for nerfstudio's format, which has the most keys: any of them with any value is read or refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nerf_trainer.errors import ConfigError, DataError
from tests.data.transforms_scene import nerfstudio, read, save
from tests.faults.counts import Fault, examples
from tests.known_scene import ring

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-2, 2), st.text(max_size=2), st.lists(st.floats(-2, 2), max_size=4)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
KEYS = st.sampled_from(
    [
        *("camera_model", "is_fisheye", "fl_x", "fl_y", "x_fov", "y_fov", "camera_angle_x", "cx", "cy", "w", "h"),
        *("k1", "k2", "k3", "k4", "p1", "p2", "aabb_scale", "scale", "offset", "aabb", "from_na", "rolling_shutter"),
        *("applied_transform", "applied_scale", "ply_file_path", "frames", "train_filenames", "test_filenames"),
        *("integer_depth_scale", "enable_depth_loading", "file_path", "mask_path", "depth_file_path", "depth_path"),
        *("transform_matrix", "transform_matrix_start", "time", "n_frames", "ftheta_p0", "latlong"),
    ]
)


@pytest.fixture(scope="module")
def mutable_scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with images, and a sound document of them."""
    root = tmp_path_factory.mktemp("mutable")
    return root, json.dumps(nerfstudio(root, ring(3), k1=0.01))


@pytest.mark.fault(row=31)
def test_31_documents_with_any_value_under_any_key(mutable_scene: tuple[Path, str], fault: Fault):
    """Of the file or of a frame."""
    n = fault.times(1000, quick=30)

    @examples(n)
    @given(
        changes=st.lists(st.tuples(KEYS, JUNK, st.integers(-1, 2)), min_size=1, max_size=3),
        factor=st.sampled_from([1, 2]),
    )
    def attempt(changes: list[tuple[str, object, int]], factor: int) -> None:
        read_or_refused(*mutable_scene, changes, factor)

    attempt()
    fault.passed(n)


def read_or_refused(root: Path, sound: str, changes: list[tuple[str, object, int]], factor: int) -> None:
    document = json.loads(sound)
    for key, value, place in changes:
        frames = document.get("frames")
        holder = frames[place] if place >= 0 and isinstance(frames, list) and len(frames) > place else document
        if isinstance(holder, dict):
            holder[key] = value
    save(root, document)
    try:
        read_map = read(root, downscale_factor=factor, hold_out_every=2)
    except DataError as error:
        assert "\n" not in str(error)
    except ConfigError as error:
        assert "hold_out_every" in str(error) or "downscale_factor" in str(error)
    else:
        assert len(read_map.train) >= 1
