"""Codes of sequences and of times: what they are, whose they are, and that they stay so."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nerf_trainer.conditioning import global_encoders
from nerf_trainer.conditioning.global_encoders import (
    Autodecoder,
    GlobalEncoderBase,
    HarmonicTimeEncoder,
    SequenceAutodecoder,
)
from nerf_trainer.config import Factory, build
from nerf_trainer.errors import CheckpointError, ConfigError, DataError
from nerf_trainer.experiment import Experiment
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.training.checkpoint import CheckpointStore
from tests.conditioning.rank_kit import train_a_rank
from tests.data.conftest import BlenderScene
from tests.faults.nursery import Nursery
from tests.faults.rank_kit import call_ranks
from tests.scene_kit import orbit


def views(*names: str, times: tuple[float, ...] | None = None) -> FrameData:
    n = len(names) or len(times or ())
    stamps = None if times is None else torch.tensor(times)
    return FrameData(cameras=orbit(n), sequence_name=names, frame_timestamp=stamps)


def encoder(dim: int = 3, rows: int = 4, names: tuple[str, ...] = (), **options) -> SequenceAutodecoder:
    made = SequenceAutodecoder(autodecoder=Autodecoder(encoding_dim=dim, n_instances=rows, **options))
    made.learn_sequences(names)
    return made


def number_(made: SequenceAutodecoder) -> None:
    """Let the code of row i be i, i + 0.1, i + 0.2, ..."""
    rows, dim = made.autodecoder.codes.shape
    with torch.no_grad():
        made.autodecoder.codes.copy_(torch.arange(rows)[:, None] + 0.1 * torch.arange(dim))


# --- sequences ---------------------------------------------------------------------------------------------------


def test_each_view_has_the_code_of_its_sequence():
    made = encoder(names=("cup", "bear", "apple"))
    number_(made)
    assert not made.capturable and made.encoding_dim == 3
    assert made.autodecoder.names == ("apple", "bear", "cup"), "rows go by the names' order, not by who came first"
    expected = torch.tensor([[2.0, 2.1, 2.2], [0.0, 0.1, 0.2], [2.0, 2.1, 2.2]])
    for _ in range(2):  # the second time from what was kept
        torch.testing.assert_close(made(views("cup", "apple", "cup")), expected)


def test_options_come_by_the_reference_s_keys():
    made = build(SequenceAutodecoder, {"autodecoder_args": {"encoding_dim": 5, "n_instances": 2, "init_scale": 0.5}})
    assert made.autodecoder.codes.shape == (2, 5)
    plain = SequenceAutodecoder().autodecoder
    assert (plain.encoding_dim, plain.n_instances, plain.init_scale, plain.ignore_input) == (0, 1, 1.0, False)


def test_codes_start_from_a_normal_distribution():
    torch.manual_seed(0)
    codes = Autodecoder(encoding_dim=50, n_instances=400, init_scale=0.3).codes
    assert codes.mean().item() == pytest.approx(0.0, abs=0.01) and codes.std().item() == pytest.approx(0.3, rel=0.02)


def test_the_gradient_of_a_code_is_the_sum_over_its_views():
    made = encoder(names=("a", "b"))
    weights = torch.tensor([[1.0], [10.0], [100.0]])
    (made(views("b", "a", "b")) * weights).sum().backward()
    gradient = made.autodecoder.codes.grad
    assert gradient is not None and gradient[:, 0].tolist() == [10.0, 101.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_are_float32_under_autocast(dtype: torch.dtype):
    made = encoder(names=("a",))
    with torch.autocast("cpu", dtype=dtype):
        codes, times = made(views("a")), HarmonicTimeEncoder()(views(times=(0.3,)))
    assert codes.dtype == times.dtype == torch.float32


def test_a_shared_code_asks_for_no_names():
    made = encoder(rows=1, names=("a", "b", "c"), ignore_input=True)
    number_(made)
    frames = FrameData(cameras=orbit(2))
    torch.testing.assert_close(made(frames), torch.tensor([[0.0, 0.1, 0.2]] * 2))
    made(frames).sum().backward()
    assert made.autodecoder.codes.grad is not None and made.autodecoder.codes.grad.tolist() == [[2.0] * 3]


def test_codes_without_width_train_nothing():
    made = encoder(dim=0, names=("a",))
    assert made(views("a", "a")).shape == (2, 0) and made.encoding_dim == 0
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_learning_again_keeps_what_is_known_and_adds_what_is_new():
    made = encoder(names=("m", "x"))
    made.learn_sequences(["x", "z", "a"])
    assert made.autodecoder.names == ("m", "x", "a", "z")
    made.learn_sequences(["a"])
    made.learn_sequences([])
    assert made.autodecoder.names == ("m", "x", "a", "z"), "a sequence that is trained on no more keeps its code"


def test_more_sequences_than_rows_are_refused():
    key = "global_encoder_SequenceAutodecoder_args.autodecoder_args.n_instances"
    with pytest.raises(ConfigError) as fresh:
        encoder(rows=1, names=("b", "a", "d", "c"))
    assert str(fresh.value) == f"{key}: found 1, expected at least 4, one a sequence: a, b, c, ...; raise it"
    known = encoder(rows=2, names=("a", "b"))
    with pytest.raises(ConfigError) as later:
        known.learn_sequences(["b", "c"])
    line = f"{key}: found 2, expected at least 3, one a sequence: 2 in the checkpoint, and c; "
    assert str(later.value).startswith(line) and "new exp_dir" in str(later.value)
    assert known.autodecoder.names == ("a", "b")


def test_a_sequence_that_was_not_trained_on_is_refused():
    made = encoder(names=("bear", "cup"))
    with pytest.raises(DataError) as unknown:
        made(views("bear", "cap"))
    line = str(unknown.value)
    assert line.startswith("sequence_name: 'cap' is a sequence that was not trained on and has no code; expected one")
    assert "bear, cup; did you mean 'cup'?; leave it out of the split, train on it too, or" in line
    with pytest.raises(DataError, match="'cup', but none has a code; the training loader's contents must name them"):
        encoder()(views("cup"))
    with pytest.raises(DataError, match=r"found 0 names for 2 frames, expected one for each; .* ignore_input: true"):
        made(FrameData(cameras=orbit(2)))


def test_in_evaluation_others_may_have_the_mean_of_the_learned_codes():
    made = encoder(rows=4, names=("bear", "cup"))
    made.autodecoder.unknown_sequences = "mean"
    assert made.without_code(("ant", "cup")) == () and made.with_mean_code(("ant", "cup")) == ("ant",)
    with pytest.raises(DataError, match="'ant' is a sequence that was not trained on"):
        made(views("ant"))
    made.eval()
    codes = made.autodecoder.codes
    assert torch.equal(made(views("ant", "cup")), torch.stack([(codes[0] + codes[1]) / 2, codes[1]]))
    assert torch.equal(made(views("cup", "bear")), codes[[1, 0]])
    assert encoder(names=("bear",)).with_mean_code(("ant",)) == (), "refused, as long as nothing else is said"


def test_who_has_no_code():
    made = encoder(names=("bear", "cup"))
    assert made.without_code(("ant", "bear", "dog")) == ("ant", "dog") and made.without_code(("cup",)) == ()
    assert encoder().without_code(("ant",)) == (), "nothing is known yet"
    assert encoder(dim=0, names=("bear",)).without_code(("ant",)) == ()
    assert encoder(ignore_input=True, names=("bear",)).without_code(("ant",)) == ()
    assert HarmonicTimeEncoder().without_code(("ant",)) == ()


def test_options_are_checked():
    for option, value in (("encoding_dim", -1), ("n_instances", 0)):
        with pytest.raises(ConfigError, match=f"{option}: found {value}, expected a whole number"):
            Autodecoder(**{option: value})
    with pytest.raises(ConfigError, match="time_divisor: found 0"):
        HarmonicTimeEncoder(time_divisor=0.0)
    with pytest.raises(ConfigError, match="n_harmonic_functions: found -1"):
        HarmonicTimeEncoder(n_harmonic_functions=-1)


def test_many_different_batches_take_no_more_and_more_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(global_encoders, "_N_KEPT_BATCHES", 3)
    made = encoder(names=("a", "b"))
    number_(made)
    first = made.autodecoder._rows_of(("a",))
    for n in range(1, 8):
        assert made(views(*"b" * n))[:, 0].tolist() == [1.0] * n
    assert len(made.autodecoder._batches) == 3
    assert made.autodecoder._rows_of(("a",)) is first, "a captured step reads it where it was"


# --- saving ------------------------------------------------------------------------------------------------------


def test_rows_survive_saving_even_if_names_come_in_another_order(tmp_path: Path):
    saved = encoder(names=("x", "m"))
    saved.learn_sequences(["a"])  # came later, so that the rows are not sorted
    number_(saved)
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    loaded = encoder(names=("zebra", "yak", "ox", "gnu"))
    loaded(views("ox"))
    loaded.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    loaded.learn_sequences(["x", "b", "a", "m"])
    assert loaded.autodecoder.names == ("m", "x", "a", "b")
    assert loaded(views("a", "m", "x", "b"))[:, 0].tolist() == [2.0, 0.0, 1.0, 3.0]
    with pytest.raises(DataError):
        loaded(views("ox"))
    again = copy.deepcopy(loaded)
    assert again(views("x"))[:, 0].tolist() == [1.0]
    again.load_state_dict(encoder(names=("p", "q")).state_dict())
    assert (again.autodecoder.names, loaded.autodecoder.names) == (("p", "q"), ("m", "x", "a", "b"))


def test_names_of_all_kinds_survive():
    names = ('with "quotes"', "ünïcödé 猫", "\ud800", "", "a\nb", "110_13051_23361")
    saved, loaded = encoder(rows=8, names=names), encoder(rows=8)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.autodecoder.names == saved.autodecoder.names == tuple(sorted(names))


def bytes_of(text: bytes) -> Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        (bytes_of(b'["a", "b'), "expected a list of names"),
        (bytes_of(b"\xff\xfe["), "expected a list of names"),
        (bytes_of(b""), "expected a list of names"),
        (bytes_of(b"[" * 100_000), "expected a list of names"),
        (bytes_of(b'{"a": 0}'), "found {'a': 0}, expected a list of names"),
        (bytes_of(b'["a", 1]'), "expected a list of names"),
        (bytes_of(b'["a", "a"]'), "found a sequence twice"),
        (bytes_of(json.dumps(list("abcde")).encode()), "found 5 sequences, expected at most 4"),
        (bytes_of(b'["a"]').float(), "expected a list of names"),
    ],
)
def test_a_damaged_table_is_refused(damaged: Tensor, found: str):
    made = encoder(names=("a", "b"))
    state = {**made.state_dict(), "autodecoder._names": damaged}
    with pytest.raises(CheckpointError) as error:
        encoder().load_state_dict(state)
    line = str(error.value)
    assert line.startswith("autodecoder._names: ") and found in line and "\n" not in line
    assert line.endswith("the checkpoint is damaged: resume from another")


def test_a_missing_table_is_a_misfit_like_any_other():
    state = {name: value for name, value in encoder().state_dict().items() if not name.endswith("_names")}
    with pytest.raises(RuntimeError, match=r"Missing key.*autodecoder\._names"):
        encoder().load_state_dict(state)


def several_scenes(root: Path, max_epochs: int, **settings: object) -> Experiment:
    """A small conditioned network on the scenes of a folder, two steps an epoch."""
    scenes = {"base_dir": str(root), "evaluate": "KNOWN_SCENES"}
    steps = {"dataset_length_train": 2}
    network = {"n_hidden_neurons_xyz": 4, "n_hidden_neurons_dir": 4, "n_layers_xyz": 1, "append_xyz": []}
    model = {
        "global_encoder_class_type": "SequenceAutodecoder",
        "global_encoder_SequenceAutodecoder_args": {"autodecoder_args": {"encoding_dim": 2, "n_instances": 3}},
        "implicit_function_NeuralRadianceFieldImplicitFunction_args": network,
        "raysampler_AdaptiveRaySampler_args": {"n_rays_total_training": 8, "n_pts_per_ray_training": 8},
    }
    config = {
        "exp_dir": str(root / "run"),
        "data_source_ImplicitronDataSource_args": {
            "dataset_map_provider_class_type": "MultiSceneDatasetMapProvider",
            "dataset_map_provider_MultiSceneDatasetMapProvider_args": scenes,
            "data_loader_map_provider_class_type": "ResidentDataLoaderMapProvider",
            "data_loader_map_provider_ResidentDataLoaderMapProvider_args": steps,
        },
        "model_factory_ImplicitronModelFactory_args": {
            "model_class_type": "OverfitModel",
            "model_OverfitModel_args": model,
        },
        "training_loop_ImplicitronTrainingLoop_args": {"visualize_interval": 0, "validation_interval": 0},
        "max_epochs": max_epochs,
        **settings,
    }
    return build(Experiment, config)


def saved_codes(root: Path) -> tuple[list[str], Tensor]:
    checkpoint = CheckpointStore(root / "run").latest()
    assert checkpoint is not None
    tensors = load_file(checkpoint.path / "model.safetensors")
    place = "global_encoder.autodecoder"
    return json.loads(bytes(tensors[f"{place}._names"].tolist())), tensors[f"{place}.codes"]


def test_a_run_keeps_its_codes_as_scenes_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    for name in ("cup", "bear"):
        BlenderScene(tmp_path / name, hw=(6, 8)).add("train", 3).add("test", 1)
    several_scenes(tmp_path, 1).run()
    names, first = saved_codes(tmp_path)
    assert names == ["bear", "cup"]
    BlenderScene(tmp_path / "ant", hw=(6, 8)).add("train", 3).add("test", 1)
    with pytest.raises(DataError, match=r"sequence_name: 'ant' is a sequence that was not trained on"):
        several_scenes(tmp_path, 1, eval_only=True).run()
    several_scenes(tmp_path, 2).run()
    names, second = saved_codes(tmp_path)
    assert names == ["bear", "cup", "ant"]
    moved = (second - first).abs()
    assert 0 < moved.max() < 0.01, "two steps of Adam at a rate of 0.0005 go on from the codes that were saved"
    several_scenes(tmp_path, 2, eval_only=True).run()
    BlenderScene(tmp_path / "dog", hw=(6, 8)).add("train", 3).add("test", 1)
    with pytest.raises(ConfigError, match=r"n_instances: found 3, expected at least 4, one a sequence: 3 in the check"):
        several_scenes(tmp_path, 3).run()


# --- two processes -----------------------------------------------------------------------------------------------


def test_two_processes_agree_on_whose_code_is_whose(nursery: Nursery, tmp_path: Path):
    call_ranks(nursery, 2, train_a_rank, str(tmp_path))
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert bytes(one["autodecoder._names"].tolist()) == b'["a", "b"]'
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert sorted([*seen[0], *seen[1]]) == ["a", "a", "b", "b"]
    assert one["gradient"].tolist() == [[1.0], [1.0], [0.0]]


# --- times -------------------------------------------------------------------------------------------------------


def test_times_are_lifted_to_sines_and_cosines():
    made = HarmonicTimeEncoder(n_harmonic_functions=3, time_divisor=2.0)
    assert made.encoding_dim == 2 * 3 + 1 and made.capturable
    frequencies = (1, 2, 4)
    expected = [
        [*(math.sin(f * t) for f in frequencies), *(math.cos(f * t) for f in frequencies), t]
        for t in (0.0 / 2, 3.0 / 2, -1.0 / 2)
    ]
    torch.testing.assert_close(made(views(times=(0.0, 3.0, -1.0))), torch.tensor(expected))


def test_times_alone_and_by_default():
    assert HarmonicTimeEncoder().encoding_dim == 21
    bare = HarmonicTimeEncoder(n_harmonic_functions=2, append_input=False)
    assert bare(views(times=(0.5,))).shape == (1, bare.encoding_dim) == (1, 4)


def conditioned_model(made: GlobalEncoderBase) -> OverfitModel:
    network = Factory.of(
        NeuralRadianceFieldImplicitFunction,
        n_layers_xyz=1,
        n_hidden_neurons_xyz=8,
        n_hidden_neurons_dir=8,
        append_xyz=(),
    )
    sampler = NearFarRaySampler(min_depth=3.0, max_depth=5.0, n_pts_per_ray_evaluation=8)
    return OverfitModel(global_encoder=made, implicit_function=network, raysampler=sampler).eval()


@pytest.mark.parametrize(
    ("made", "frames"),
    [
        (HarmonicTimeEncoder(n_harmonic_functions=2), [views(times=(time,)) for time in (0.1, 0.1, 0.7)]),
        (encoder(names=("a", "b")), [views(name) for name in "aab"]),
    ],
)
def test_what_is_rendered_depends_on_the_code_alone(made: GlobalEncoderBase, frames: list[FrameData]):
    torch.manual_seed(0)
    model = conditioned_model(made)
    with torch.no_grad():
        here, same, elsewhere = (model(replace(f, cameras=orbit(1, size=4))).images_render for f in frames)
    assert torch.equal(here, same) and (here - elsewhere).abs().max() > 1e-4


def test_frames_without_times_are_refused():
    with pytest.raises(DataError, match="frame_timestamp: found none, expected the time of every frame"):
        HarmonicTimeEncoder()(views("a"))
