"""Bad input to datasets, fault by fault, for every format of `scene_formats.FORMATS`, with the counts that were set.

| fault | what must happen | here |
|---|---|---|
| 28 missing image | exit 3, frame and path named; on_bad_frame=skip leaves out 5 % and says so, more is refused | yes |
| 29 images of all kinds, 300 damaged ones | decoded or refused in one line, never a traceback, never a hang | yes |
| 30 decompression bombs | refused from the header, less than 50 MB of memory | yes |
| 31 JSON that is cut, nested, of wrong types, ... | 1000, each read or refused; 1 GB refused by its size | yes |
| 32 poses that are none | 200 refused with their frame; small skews are mended | yes, and tests/data/test_poses.py |
| 33 focal lengths, fields of view, sizes | 20 or more refused | yes |
| 34 near and far | 12: exit 2 from the configuration, 3 from data before a model is made | yes |
| 35 0 or 1 frame, empty split, duplicates, overlap | 6: refused, or a notice | yes |
| 36 paths that leave the scene | 50 payloads, nothing outside is opened | yes |
| 37 archives | read in memory, bounded, nothing unpacked to disk | tests/data/test_tiny_nerf.py |
| 38 a pipe for an image | refused in less than 2 s | yes |

The counts are divided among the formats. Meshes have the same in tests/data/rendered_mesh/test_files.py, CO3D's
annotations in tests/data/co3d/.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nerf_trainer import experiment
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.files import MAX_JSON_BYTES
from nerf_trainer.data.source import ImplicitronDataSource
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import MAX_LINE, ConfigError, DataError
from nerf_trainer.rays.samplers import NearFarRaySampler
from tests.data.scene_formats import BLENDER_FILE, FORMATS, SceneFormat, edit_json, llff_setting
from tests.faults.counts import Fault, examples
from tests.known_scene import facing
from tests.peak_memory import memory_grows_by_less_than

N_FRAMES = 20
FEW = 3

every_format = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
JSON_FORMATS = tuple(kind for kind in FORMATS if kind.json_file)
NAMING_FORMATS = tuple(kind for kind in FORMATS if kind.rename)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """A scene of each format with 20 views, and one with 3."""
    views, root = facing(N_FRAMES), tmp_path_factory.mktemp("formats")
    scenes = {}
    for kind in FORMATS:
        for n in (N_FRAMES, FEW):
            kind.write(root / f"{kind.name}_{n}", views[:n])
            scenes[kind.name, n] = root / f"{kind.name}_{n}"
    return scenes


@pytest.fixture
def fresh(tmp_path: Path, written: dict[tuple[str, int], Path]) -> Callable[..., Path]:
    """Copies of the scenes, to be spoiled."""

    def copy(kind: SceneFormat, n: int = FEW, name: str = "scene") -> Path:
        return Path(shutil.copytree(written[kind.name, n], tmp_path / kind.name / name))

    return copy


def read(kind: SceneFormat, folder: Path, on_bad_frame: str = "error") -> DatasetMap:
    """As a run reads it, through the data source."""
    source = ImplicitronDataSource(dataset_map_provider=kind.provider(folder), on_bad_frame=on_bad_frame)
    return source.get_datasets_and_dataloaders()[0]


def refusal(kind: SceneFormat, folder: Path) -> str:
    """The one line that a scene is refused with."""
    with pytest.raises(DataError) as caught:
        read(kind, folder)
    return checked(caught.value)


def checked(error: Exception) -> str:
    line = str(error)
    assert line.isprintable() and len(line) < MAX_LINE + 300, "paths of tests are long"
    return line


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails instead of hanging."""

    def stop(*_: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@every_format
def test_scenes_are_read_before_they_are_spoiled(kind, fresh):
    train = read(kind, fresh(kind)).train
    assert len(train) == FEW and train.rgba(0).shape == (36, 48, 4)


@every_format
@pytest.mark.fault(row=28)
def test_28_missing_and_damaged_images(kind, fresh):
    folder = fresh(kind, N_FRAMES)
    kind.image(folder, 7).unlink()
    line = refusal(kind, folder)
    if kind.rename:
        assert kind.frame(7) in line
    for damaged in (b"", b"no image at all", Path(kind.image(folder, 8)).read_bytes()[:-50]):
        spoiled = fresh(kind, N_FRAMES, f"damaged_{len(damaged)}")
        kind.image(spoiled, 7).write_bytes(damaged)
        datasets = read(kind, spoiled, on_bad_frame="skip")
        assert len(datasets.train) == N_FRAMES - 1 and 7 not in datasets.train.frame_numbers
        [notice] = [text for text in datasets.notices if text.startswith("left out")]
        assert notice.startswith("left out (1 of 20 frames)") and kind.frame(7) in notice
        kind.image(spoiled, 8).write_bytes(damaged)
        with pytest.raises(DataError, match=r"leaves out at most 5% of the frames, found 2 of 20 bad; the first: "):
            read(kind, spoiled, on_bad_frame="skip")


@pytest.mark.parametrize("kind", NAMING_FORMATS, ids=lambda kind: kind.name)
@pytest.mark.fault(row=28)
def test_28_a_missing_image_is_left_out_too(kind, fresh):
    folder = fresh(kind, N_FRAMES)
    kind.image(folder, 7).unlink()
    datasets = read(kind, folder, on_bad_frame="skip")
    assert 7 not in datasets.train.frame_numbers and len(datasets.train) == N_FRAMES - 1
    assert any("left out (1 of 20 frames)" in text and kind.frame(7) in text for text in datasets.notices)


def of_every_kind(generator: np.random.Generator) -> list[bytes]:
    """Photographs of 48x36 pixels as files of all kinds: grey, palette, 16 bits, CMYK, one pixel, other sizes, ..."""
    noise = generator.integers(0, 256, (36, 48, 4)).astype(np.uint8)
    color = Image.fromarray(noise[..., :3])
    images = [
        (color, "PNG"),
        (Image.fromarray(noise), "PNG"),
        (color.convert("L"), "PNG"),
        (color.convert("LA"), "PNG"),
        (color.convert("1"), "PNG"),
        (color.quantize(16), "PNG"),
        (Image.fromarray(generator.integers(0, 65536, (36, 48)).astype(np.uint16)), "PNG"),
        (color, "JPEG"),
        (color.convert("L"), "JPEG"),
        (color.convert("CMYK"), "JPEG"),
        (color, "BMP"),
        (color, "TIFF"),
        (color.convert("CMYK"), "TIFF"),
        (color, "WEBP"),
        (color, "GIF"),
        (color.resize((1, 1)), "PNG"),
        (color.resize((24, 36)), "PNG"),
    ]
    files = []
    for image, form in images:
        stream = io.BytesIO()
        image.save(stream, form)
        files.append(stream.getvalue())
    return files


@every_format
@pytest.mark.fault(row=29)
def test_29_three_hundred_damaged_images(kind, fresh, fault: Fault):
    """300 divided among the formats, which share the decoder: cut, changed, empty, or of another kind."""
    generator, n = np.random.default_rng(len(kind.name)), fault.times(300 // len(FORMATS), quick=12)
    originals, folder, decoded, refused = of_every_kind(generator), fresh(kind), 0, 0
    with within(120):
        for i in range(n):
            content = np.frombuffer(originals[i * 5 % len(originals)], np.uint8).copy()
            damage = i % 4
            if damage == 1:
                content = content[: generator.integers(len(content))]
            elif damage == 2:
                content[generator.integers(len(content), size=4)] = generator.integers(256, size=4)
            elif damage == 3:
                content[:4] = generator.integers(256, size=4)
            kind.image(folder, 1).write_bytes(content.tobytes())
            try:
                image = read(kind, folder).train.rgba(1)
            except DataError as error:
                refused += 1
                checked(error)
            else:
                decoded += 1
                assert image.shape[-1] == 4 and str(image.dtype) == "torch.uint8"
    assert decoded > n // 8 and refused > n // 8
    fault.passed(n)


@every_format
@pytest.mark.fault(row=29)
def test_29_undamaged_images_of_every_kind_are_read(kind, fresh):
    """Those of another shape may be refused, as may GIF; all others give their size."""
    folder = fresh(kind)
    for content in of_every_kind(np.random.default_rng(0))[:14]:
        kind.image(folder, 1).write_bytes(content)
        assert read(kind, folder).train.rgba(1).shape == (36, 48, 4)


def bomb(width: int) -> bytes:
    """A whole PNG of width x width grey pixels, all black, a bit each: a few kB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packed, row = zlib.compressobj(9), b"\0" * (1 + width // 8)
    body = b"".join(packed.compress(row) for _ in range(width)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, width, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def bombs() -> list[bytes]:
    return [bomb(9000), bomb(14000)]


@every_format
@pytest.mark.fault(row=30)
def test_30_decompression_bombs_are_refused_from_the_header(kind, fresh, bombs, fault: Fault):
    folder = fresh(kind)
    read(kind, folder)
    for content in bombs:
        assert len(content) < 40_000
        kind.image(folder, 1).write_bytes(content)
        with memory_grows_by_less_than(50):
            line = refusal(kind, folder)
        assert "megapixels" in line and kind.frame(1) in line
    fault.passed(fault.times(len(bombs), quick=len(bombs)))


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from(["", "./r_0", "../x", "\0", "NaN", "a" * 300]),
    st.just([]),
    st.just({}),
    st.lists(st.floats(), max_size=5),
)


@st.composite
def spoiled_text(draw: st.DrawFn, original: str) -> bytes:
    """A description with a value replaced, a key taken out, put twice or added, cut, nested or with stray bytes."""
    content = json.loads(original)
    for _ in range(draw(st.integers(0, 3))):
        _spoil(draw, content)
    text = json.dumps(content).encode()
    way = draw(st.sampled_from(["none", "none", "cut", "bom", "twice", "bytes", "nested", "encoding"]))
    if way == "cut":
        text = text[: draw(st.integers(0, len(text)))]
    elif way == "bom":
        text = b"\xef\xbb\xbf" + text
    elif way == "twice":
        text = b'{"frames": [], ' + text[1:]
    elif way == "bytes":
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.binary(min_size=1, max_size=3)) + text[place:]
    elif way == "nested":
        text = draw(st.sampled_from([b"[", b'{"frames":[', b'{"a":'])) * 100_000
    elif way == "encoding":
        text = text.decode().encode("utf-16")
    return text


def _spoil(draw: st.DrawFn, content: object) -> None:
    """Change one value, at a depth that is drawn too."""
    node = content
    while True:
        if not isinstance(node, dict | list) or not node:
            return
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
            node = node[key]
            continue
        if draw(st.booleans()):
            node[key] = draw(LEAVES)
        else:
            del node[key]
        return


@pytest.mark.parametrize("kind", JSON_FORMATS, ids=lambda kind: kind.name)
@pytest.mark.fault(row=31)
def test_31_a_thousand_spoiled_descriptions(kind, fresh, fault: Fault):
    """1000 divided among the formats."""
    folder = fresh(kind)
    original, n = (folder / kind.json_file).read_text(), fault.times(1000 // len(JSON_FORMATS), quick=40)
    outcomes = {"read": 0, "refused": 0}

    @examples(n)
    @given(spoiled_text(original))
    def attempt(text: bytes) -> None:
        (folder / kind.json_file).write_bytes(text)
        try:
            read(kind, folder)
        except DataError as error:
            outcomes["refused"] += 1
            checked(error)
        else:
            outcomes["read"] += 1

    attempt()
    assert outcomes["read"] > n // 100 and outcomes["refused"] > n // 4
    fault.passed(sum(outcomes.values()))


@pytest.mark.parametrize("kind", JSON_FORMATS, ids=lambda kind: kind.name)
@pytest.mark.fault(row=31)
def test_31_a_gigabyte_is_refused_by_its_size(kind, fresh):
    folder = fresh(kind)
    os.truncate(folder / kind.json_file, 2**30)
    with memory_grows_by_less_than(50), within(6):
        line = refusal(kind, folder)
    assert f"found 1024 MiB of JSON, expected at most {MAX_JSON_BYTES // 2**20} MiB" in line


@every_format
@pytest.mark.fault(row=32)
def test_32_two_hundred_poses_that_are_none(kind, fresh, fault: Fault):
    """200 divided among the formats."""
    generator = np.random.default_rng(1)
    folder = fresh(kind)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".json", ".npy", ".txt")}
    n = fault.times(200 // len(FORMATS), quick=8)
    for _ in range(n):
        for path, content in whole.items():
            path.write_bytes(content)
        i = int(generator.integers(FEW))
        kind.spoil_pose(folder, i, generator)
        line = refusal(kind, folder)
        assert kind.pose(i) in line
    fault.passed(n)


def test_33_there_are_twenty_lenses_that_are_none():
    assert all(len(kind.bad_lenses) >= 10 for kind in FORMATS) and sum(len(kind.bad_lenses) for kind in FORMATS) >= 40


@every_format
@pytest.mark.fault(row=33)
def test_33_focal_lengths_fields_of_view_and_sizes(kind, fresh, fault: Fault):
    n = fault.times(len(kind.bad_lenses), quick=5)
    for i in range(n):
        folder = fresh(kind, name=f"lens_{i}")
        kind.bad_lenses[i * 7 % len(kind.bad_lenses)](folder)
        refusal(kind, folder)
    fault.passed(n)


@pytest.mark.fault(row=34)
def test_34_near_and_far_of_the_configuration(fault: Fault):
    wrong = (
        {"min_depth": 4.0, "max_depth": 4.0},
        {"min_depth": 5.0, "max_depth": 4.0},
        {"min_depth": float("nan")},
        {"max_depth": float("nan")},
        {"min_depth": -1.0},
        {"min_depth": 0.0, "linear_in_disparity": True},
    )
    for options in wrong:
        with pytest.raises(ConfigError, match=r"min_depth|max_depth"):
            NearFarRaySampler(**options)
    fault.passed(fault.times(len(wrong), quick=len(wrong)))


@pytest.mark.fault(row=34)
def test_34_near_and_far_of_the_data(fresh, fault: Fault):
    [kind] = [kind for kind in FORMATS if kind.name == "llff"]
    wrong = ((4, 4), (5, 4), (0, 4), (-1, 4), (np.nan, 4), (2, np.inf))
    for i, (near, far) in enumerate(wrong):
        folder = fresh(kind, name=f"bounds_{i}")
        llff_setting(15, near)(folder)
        llff_setting(16, far)(folder)
        assert "row 0" in refusal(kind, folder)
    fault.passed(fault.times(len(wrong), quick=len(wrong)))


@pytest.mark.fault(row=35)
def test_35_frames_that_are_too_few_or_the_same(fresh, fault: Fault):
    """No frame, an empty test split, one frame, an image twice, test images in train, no train file."""
    [kind] = [kind for kind in FORMATS if kind.name == "blender"]

    def frames(change: Callable[[list[object]], object], file: str = BLENDER_FILE) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            if not (folder / file).exists():
                shutil.copy(folder / BLENDER_FILE, folder / file)
            edit_json(folder / file, lambda content: change(content["frames"]))

        return spoil

    refused = {
        "frames: expected at least one frame": frames(lambda f: f.clear()),
        "transforms_test.json: frames: expected at least one frame": frames(
            lambda f: f.clear(), "transforms_test.json"
        ),
        "transforms_train.json: missing": lambda folder: (folder / BLENDER_FILE).unlink(),
    }
    for i, (message, spoil) in enumerate(refused.items()):
        folder = fresh(kind, name=f"refused_{i}")
        spoil(folder)
        assert message in refusal(kind, folder)
    noticed = {
        "1 images stand twice in train": frames(lambda f: f.append(f[0])),
        "3 test images are trained on too": frames(lambda f: None, "transforms_test.json"),
    }
    for i, (message, spoil) in enumerate(noticed.items()):
        folder = fresh(kind, name=f"noticed_{i}")
        spoil(folder)
        assert any(message in notice for notice in read(kind, folder).notices)
    folder = fresh(kind, name="one")
    frames(lambda f: f.__delitem__(slice(1, None)))(folder)
    assert len(read(kind, folder).train) == 1
    fault.passed(fault.times(6, quick=6))


_OPENED: list[str] | None = None


def _note_opens(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _OPENED is not None:
        _OPENED.append(os.fspath(arguments[0]) if isinstance(arguments[0], str | os.PathLike) else str(arguments[0]))


sys.addaudithook(_note_opens)  # a hook stays for the life of the process


def payloads(outside: Path) -> list[str]:
    """Paths that leave the scene, by all ways of writing them; `outside` is an image that may not be opened."""
    name, parent = outside.name, outside.parent.name
    ups = ["../" * n + end for n in (1, 2, 3, 8, 40) for end in (f"{name}", "etc/passwd", f"{parent}/{name}")]
    inner = [f"images/../../{name}", f"./../{name}", f"a/b/../../../{name}", f"..//{name}", f".././{name}", "..", "../"]
    absolute = [
        str(outside),
        f"/{outside}",
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "/",
        "//etc/passwd",
    ]
    links = ["link.png", "folder/" + name, "chain.png", "loop.png", "images/link.png"]
    other = [
        "..%2f" + name, "%2e%2e/" + name, "..%252f" + name, "..\\" + name, "\\\\server\\share\\x.png", "C:\\x.png",
        "//server/share/x.png", f"file://{outside}", "http://localhost:1/x.png", "~/.bashrc", "~root/.bashrc",
        "a\0b.png", f"r_0.png\0{outside}", "\ud800", "x" * 5000, "/" * 5000 + "etc/passwd",
    ]  # fmt: skip
    return ups + inner + absolute + links + other


@pytest.mark.parametrize("kind", NAMING_FORMATS, ids=lambda kind: kind.name)
@pytest.mark.fault(row=36)
def test_36_fifty_paths_that_leave_the_scene(kind, fresh, monkeypatch, fault: Fault):
    folder = fresh(kind)
    outside = folder.parent / "secret.png"
    shutil.copy(kind.image(folder, 0), outside)
    for place in {folder, kind.image(folder, 0).parent}:
        for link, target in (("link.png", outside), ("folder", folder.parent), ("loop.png", place / "loop.png")):
            os.symlink(target, place / link)
        os.symlink(place / "link.png", place / "chain.png")
    whole = {path: path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".json", ".txt")}
    texts = list(dict.fromkeys(payloads(outside)))
    assert len(texts) >= 50
    n = fault.times(len(texts), quick=15)
    texts = [texts[i * len(texts) // n] for i in range(n)]
    root, opened = os.path.realpath(folder), []
    for text in texts:
        for path, content in whole.items():
            path.write_bytes(content)
        try:
            kind.rename(folder, 1, text)
        except UnicodeEncodeError:
            continue  # the format's file can't hold it
        monkeypatch.setitem(globals(), "_OPENED", opened)
        refusal(kind, folder)
        monkeypatch.setitem(globals(), "_OPENED", None)
    data = [os.path.realpath(path) for path in opened if not path.endswith((".py", ".pyc", ".so"))]
    assert data and [path for path in data if not path.startswith(root)] == []
    fault.passed(n)


@every_format
@pytest.mark.fault(row=36)
def test_36_images_that_are_links_out_of_the_scene(kind, fresh):
    folder = fresh(kind)
    outside = folder.parent / "secret.png"
    shutil.move(kind.image(folder, 1), outside)
    os.symlink(outside, kind.image(folder, 1))
    assert "outside dataset root" in refusal(kind, folder)


@every_format
@pytest.mark.fault(row=38)
def test_38_a_pipe_and_a_device_are_not_waited_for(kind, fresh, fault: Fault):
    made = (os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir)
    for i, make in enumerate(made):
        folder = fresh(kind, name=f"pipe_{i}")
        kind.image(folder, 1).unlink()
        make(kind.image(folder, 1))
        with within(6):  # 2 s, thrice for a busy machine
            refusal(kind, folder)
    fault.passed(fault.times(len(made), quick=len(made)))


Command = Callable[..., tuple[int, str]]
SOURCE = "data_source_ImplicitronDataSource_args"
PROVIDER = f"{SOURCE}.dataset_map_provider_BlenderDatasetMapProvider_args"
MODEL = "model_factory_ImplicitronModelFactory_args"


@pytest.fixture
def nerf_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """The command on a Blender scene; answers its exit code and stderr."""
    handlers, level = list(logging.root.handlers), logging.root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)

    def run(folder: Path, *words: str) -> tuple[int, str]:
        scene = (f"{SOURCE}.dataset_map_provider_class_type=BlenderDatasetMapProvider", f"{PROVIDER}.base_dir={folder}")
        words = (*scene, f"{PROVIDER}.object_name=x", f"{MODEL}.model_class_type=OverfitModel", *words)
        monkeypatch.setattr(sys, "argv", ["nerf_runner", "exp_dir=run", *words])
        code = 0
        try:
            experiment.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
        return code, capsys.readouterr().err

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def _pipe_at(folder: Path) -> None:
    (folder / "r_1.png").unlink()
    os.mkfifo(folder / "r_1.png")


@pytest.mark.parametrize(
    ("spoil", "words", "code", "message"),
    [
        pytest.param(
            lambda folder: (folder / "r_1.png").unlink(),
            (),
            3,
            "frames[1].file_path: found nothing at",
            marks=pytest.mark.fault(row=28),
        ),
        pytest.param(
            lambda folder: (folder / BLENDER_FILE).write_text("{"),
            (),
            3,
            "expected JSON",
            marks=pytest.mark.fault(row=31, long=True),
        ),
        pytest.param(
            lambda folder: None,
            ("RAY.min_depth=5", "RAY.max_depth=4"),
            2,
            "RAY: min_depth",
            marks=pytest.mark.fault(row=34),
        ),
        pytest.param(_pipe_at, (), 3, "found a pipe", marks=pytest.mark.fault(row=38, long=True)),
    ],
    ids=["28", "31", "34", "38"],
)
def test_the_command_says_it_in_one_line(nerf_runner, fresh, spoil, words, code, message):
    sampler = f"{MODEL}.model_OverfitModel_args.raysampler_NearFarRaySampler_args"
    words = tuple(word.replace("RAY", sampler) for word in words)
    chosen = (f"{MODEL}.model_OverfitModel_args.raysampler_class_type=NearFarRaySampler",) if words else ()
    folder = fresh(FORMATS[0])
    spoil(folder)
    found, err = nerf_runner(folder, *chosen, *words)
    assert found == code and message.replace("RAY", sampler) in err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err and len(err) <= MAX_LINE
    left = [path.name for path in Path("run").rglob("*")] if Path("run").exists() else []
    assert "expconfig.yaml" not in left and not [name for name in left if name.startswith("step")], (
        "nothing was trained"
    )


def test_the_registry_holds_the_providers_of_single_scenes():
    assert isinstance(FORMATS[0].provider(Path("x")), BlenderDatasetMapProvider)
