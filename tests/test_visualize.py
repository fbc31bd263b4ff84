"""Videos of a small trained run, by the command as users type it."""

import json
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from nerf_trainer import visualize
from nerf_trainer.config import build, defaults
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.experiment import Experiment, _to_fly_around
from nerf_trainer.models.ray_model import RayModel
from nerf_trainer.training import world_frame
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.runtime import Precision
from nerf_trainer.training.saved_run import SavedRun
from nerf_trainer.visualize import VisualizeConfig
from tests.data.conftest import BlenderScene
from tests.data.llff_scene import write_llff
from tests.known_scene import facing
from tests.recipe_kit import chosen

SMALL = {"n_layers_xyz": 2, "append_xyz": [], "n_hidden_neurons_xyz": 8, "n_hidden_neurons_dir": 8}
KINDS = ("images_render", "masks_render", "depths_render", "disparities_render")

Command = Callable[..., int]


def train(folder: Path, scene: Path, **top: object) -> Path:
    """A run of two epochs of two steps."""
    source = {
        "dataset_map_provider_class_type": "BlenderDatasetMapProvider",
        "dataset_map_provider_BlenderDatasetMapProvider_args": {"base_dir": str(scene), "object_name": "points"},
        "data_loader_map_provider_class_type": "ResidentDataLoaderMapProvider",
        "data_loader_map_provider_ResidentDataLoaderMapProvider_args": {"dataset_length_train": 2},
    }
    model = {
        "implicit_function_class_type": "NeuralRadianceFieldImplicitFunction",
        "implicit_function_NeuralRadianceFieldImplicitFunction_args": SMALL,
        "raysampler_class_type": "NearFarRaySampler",
        "raysampler_NearFarRaySampler_args": {
            "min_depth": 1.0,
            "max_depth": 5.0,
            "n_rays_total_training": 16,
            "n_pts_per_ray_training": 4,
            "n_pts_per_ray_evaluation": 4,
        },
        "render_image_height": 5,
        "render_image_width": 7,
    }
    content = {
        "exp_dir": str(folder),
        "max_epochs": None,
        "data_source_ImplicitronDataSource_args": source,
        "model_factory_ImplicitronModelFactory_args": {
            "model_class_type": "OverfitModel",
            "model_OverfitModel_args": model,
        },
        "training_loop_ImplicitronTrainingLoop_args": {"max_epochs": 2, "validation_interval": 0},
        **top,
    }
    config = OmegaConf.merge(defaults(Experiment), content)
    build(Experiment, config).run(config)
    return folder


@pytest.fixture(scope="module", autouse=True)
def without_curves() -> Iterator[None]:
    """To draw a run's curves takes longer than all else of so short a run; other tests look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    BlenderScene(root / "scene").add("train", 6).add("test", 4, first_azimuth=0.3)
    return train(root / "run", root / "scene")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs `nerf_visualizer` with these words in an empty working directory; answers its exit code."""
    handlers, level = list(logging.root.handlers), logging.root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["nerf_visualizer", *words])
        try:
            visualize.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def frames_of(path: Path) -> list[tuple[int, ...]]:
    with imageio.get_reader(path) as reader:
        return [frame.shape for frame in reader]


def held(folder: Path) -> dict[str, bytes]:
    """Everything in a run's folder but the videos."""
    files = (path for path in folder.rglob("*") if path.is_file() and "video" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_readme_command(trained: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    before = held(trained)
    words = ("n_eval_cameras=9", "render_size=[8,10]", "video_size=[32,40]", "visdom_show_preds=True", "visdom_port=1")
    assert command(f"exp_dir={trained}", *words) == 0
    videos = [trained / "video" / f"video_one_sequence_{kind}.mp4" for kind in KINDS]
    sheet = trained / "video" / "video_one_sequence_sheet.png"
    for video in videos:
        assert frames_of(video) == [(32, 40, 3)] * 9
    with Image.open(sheet) as image:
        assert image.size == (8 * 10 + 9 * 4, 4 * 8 + 5 * 4)
    assert sorted(trained.glob("video/*")) == sorted([*videos, sheet])
    assert held(trained) == before
    said = capsys.readouterr().out
    assert all(str(path) in said for path in (*videos, sheet))
    assert "9 views of 8x10" in said and "frames/s" in said and "step 4" in said
    assert "a path of type circular_lsq_fit, for its views do not face one way; trajectory_type sets it" in said
    assert said.count("note: no live previews: no visdom server") == 1


@pytest.mark.parametrize("kind", ["figure_eight", "trefoil_knot", "figure_eight_knot", "spiral", "level_circle"])
def test_every_path_into_another_folder(trained: Path, command: Command, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "a" / "b"
    words = (f"output_directory={out}", f"trajectory_type={kind}", "n_eval_cameras=2", "gif=True", "up=[0,0,1]")
    assert command(f"exp_dir={trained}", *words, "split=test", "restrict_sequence_name=one_sequence") == 0
    # without a render_size, the size of the photographs; the run's own render_image_height is for its evaluation
    assert frames_of(out / "video_one_sequence_images_render.mp4") == [(24, 32, 3)] * 2
    assert len(list(out.glob("*.gif"))) == 4


@pytest.fixture(scope="module")
def front_facing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe for scenes in LLFF's format, with small networks: two epochs of thirty steps."""
    root = tmp_path_factory.mktemp("llff")
    write_llff(root / "known", facing(9), "images_4", taken_at=4)
    field = "implicit_function_NeuralRadianceFieldImplicitFunction_args"
    content: Any = OmegaConf.load(Path(__file__).parent.parent / "configs" / "nerf_llff.yaml")
    content.pop("defaults")
    config: Any = OmegaConf.merge(defaults(Experiment), content)
    config.exp_dir, config.max_epochs = str(root / "run"), None
    provider, loader = (
        chosen(config, "data_source", name) for name in ("dataset_map_provider", "data_loader_map_provider")
    )
    provider.update(base_dir=str(root / "known"), object_name="known")
    loader.dataset_length_train = 30
    model = chosen(config, "model_factory", "model")
    for which in (field, f"coarse_{field}"):
        model[which].update(SMALL)
    model.raysampler_NDCRaySampler_args.update(n_pts_per_ray_training=12, n_pts_per_ray_evaluation=12)
    model.raysampler_NDCRaySampler_args.n_rays_total_training = 256
    chosen(config, "training_loop").update(max_epochs=2, metric_print_interval=1)
    chosen(config, "optimizer_factory").lr = 5e-3
    build(Experiment, config).run(config)
    return root / "run"


def test_photographs_from_the_front(front_facing: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (front_facing / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss_rgb_mse"] for row in rows if row["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    moved = world_frame.read(front_facing)
    datasets, _ = SavedRun(front_facing)._built(DataSourceBase, "data_source").get_datasets_and_dataloaders()
    assert datasets.dataset_from_world is not None
    torch.testing.assert_close(moved.matrix(), datasets.dataset_from_world.matrix())
    model, _ = SavedRun(front_facing).model()
    a = model.state_dict()["raysampler._cotangents"]
    torch.testing.assert_close(a, torch.tensor([2 * 60 / 48, 2 * 60 / 36]))
    front_facing = front_facing.rename(front_facing.parent / "elsewhere")  # and goes on there
    config: Any = OmegaConf.load(front_facing / "expconfig.yaml")
    config.exp_dir = str(front_facing)
    chosen(config, "training_loop").max_epochs = 3
    build(Experiment, config).run(config)
    assert "resumes from step 60" in capsys.readouterr().out
    assert torch.equal(SavedRun(front_facing).model()[0].state_dict()["raysampler._cotangents"], a)
    assert command(f"exp_dir={front_facing}", "n_eval_cameras=8", "render_size=[18,24]") == 0
    said = capsys.readouterr().out
    assert "at step 90 " in said
    assert "a path of type spiral, for its views all face one way; trajectory_type sets it" in said
    video = front_facing / "video" / "video_one_sequence_images_render.mp4"
    assert len(frames_of(video)) == 8
    assert command(f"exp_dir={front_facing}", "n_eval_cameras=8", "trajectory_type=level_circle") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "NDCRaySampler needs views that look down -z" in line and "trajectory_type=spiral" in line


def test_which_epoch(trained: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"exp_dir={trained}", f"output_directory={tmp_path}", "n_eval_cameras=1", "render_size=[4,4]")
    assert command(*words, "resume_epoch=0") == 0
    assert "at step 2 " in capsys.readouterr().out
    assert command(*words, "resume_epoch=7") == 4
    assert command(*words) == 0
    assert "at step 4 " in capsys.readouterr().out


def test_a_run_that_began_with_resume_false(trained: Path, tmp_path: Path) -> None:
    """What a run's own configuration says of resuming is about training."""
    args = OmegaConf.load(trained / "expconfig.yaml").data_source_ImplicitronDataSource_args
    scene = args.dataset_map_provider_BlenderDatasetMapProvider_args.base_dir
    folder = train(tmp_path / "run", scene, model_factory_ImplicitronModelFactory_args={
        **OmegaConf.to_container(OmegaConf.load(trained / "expconfig.yaml").model_factory_ImplicitronModelFactory_args),
        "resume": False,
    })  # fmt: skip
    saved = SavedRun(folder)
    model, step = saved.model()
    assert step == 4
    again, _ = SavedRun(folder).model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("exp_dir=nowhere", 4, "no such folder"),
        ("exp_dir=.", 4, "no expconfig.yaml"),
        ("restrict_sequence_name=two_sequence", 2, "did you mean 'one_sequence'?"),
        ("split=val", 3, "expected one of train, test"),
        ("split=trian", 2, "did you mean 'train'?"),
        ("n_eval_cameras=0", 2, "n_eval_cameras"),
        ("fps=-1", 2, "fps"),
        ("n_source_views=0", 2, "n_source_views"),
        ("n_sequences=-1", 2, "n_sequences"),
        ("render_size=[0,4]", 2, "render_size"),
        ("video_size=[4]", 2, "video_size"),
        ("up=[0,0,0]", 2, "up"),
        ("trajectory_type=figure_nine", 2, "trajectory_type"),
        ("n_eval_camera=3", 2, "did you mean 'n_eval_cameras'?"),
        ("visdom_server=ftp://host visdom_show_preds=True", 2, "visdom_server"),
        ("output_directory=/proc/nowhere", 6, "output_directory"),
    ],
)
def test_a_mistake_is_one_line(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], word: str, code: int, said: str
) -> None:
    words = ["n_eval_cameras=1", "render_size=[4,4]"] + ([] if "exp_dir" in word else [f"exp_dir={trained}"])
    assert command(*words, *word.split()) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and said in line


def test_exp_dir_must_be_given(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 2
    assert "exp_dir" in capsys.readouterr().err


def test_no_checkpoint_is_no_random_picture(
    trained: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "expconfig.yaml").write_bytes((trained / "expconfig.yaml").read_bytes())
    assert command(f"exp_dir={tmp_path}") == 4
    assert "no checkpoint" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["expconfig.yaml"]


@pytest.mark.parametrize(
    ("forced", "advice"),
    [
        (False, "restore one, or train the run anew with nerf_runner"),
        (True, "restore it, or set resume_epoch=N, its last epoch, to take an older one"),
    ],
)
def test_a_damaged_checkpoint_is_told_with_what_this_command_can_do(
    trained: Path,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    forced: bool,
    advice: str,
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    if forced:
        path = tmp_path / "run" / "expconfig.yaml"
        path.write_text(path.read_text().replace("force_resume: false", "force_resume: true"))
    for weights in (tmp_path / "run" / "checkpoints").glob("step-*/model*"):
        weights.write_bytes(b"nothing")
    assert command(f"exp_dir={tmp_path / 'run'}") == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert advice in line and "resume=False" not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "expconfig.yaml"),
        ("- a", "expconfig.yaml"),
        ("seed: 1", "data_source_class_type"),
        ("data_source_class_type: MySource\nplugins: [my_source]", "plugins=['my_source']"),
        ("data_source_class_type: ImplicitronDataSource", "dataset_map_provider_class_type"),
    ],
)
def test_a_configuration_that_says_nothing(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "expconfig.yaml").write_text(text)
    assert command(f"exp_dir={tmp_path}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_interpolations_of_the_saved_configuration_resolve(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the part that is built, into another part, and from the environment."""
    config = OmegaConf.load(trained / "expconfig.yaml")
    args = config.data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args
    monkeypatch.setenv("POINTS_SCENE", args.base_dir)
    args.base_dir = "${oc.env:POINTS_SCENE}"
    args.testskip = "${training_loop_ImplicitronTrainingLoop_args.max_epochs}"
    OmegaConf.save(config, tmp_path / "expconfig.yaml")
    dataset = SavedRun(tmp_path).datasets().test
    assert dataset is not None and len(dataset) == 4 // 2


def test_a_signal_leaves_nothing_behind(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, calls = visualize.VideoWriter.append, []

    def stopped(self, frame):
        append(self, frame)
        calls.append(self)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(visualize.VideoWriter, "append", stopped)
    settings = VisualizeConfig(exp_dir=str(trained), output_directory=str(tmp_path), render_size=(4, 4))
    with pytest.raises(RunStoppedError) as caught:
        settings.run()
    assert caught.value.exit_code == 143
    assert len(calls) == 8
    assert list(tmp_path.iterdir()) == []


def test_a_signal_does_not_wait_for_a_view(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, begun = RayModel.forward, []

    def stopped(self, frames):
        begun.append(frames)
        if len(begun) == 9:  # of the fifth view, behind four that are looked at for their depth
            os.kill(os.getpid(), signal.SIGINT)
            begun.append("rendered on")
        return forward(self, frames)

    monkeypatch.setattr(RayModel, "forward", stopped)
    settings = VisualizeConfig(exp_dir=str(trained), output_directory=str(tmp_path), render_size=(4, 4))
    with pytest.raises(RunStoppedError, match=r"stopped by SIGINT after \d+ of \d+ views; nothing was written"):
        settings.run()
    assert len(begun) == 9 and list(tmp_path.iterdir()) == []


def test_a_run_in_half_precision_is_rendered_in_full_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "expconfig.yaml").write_text("precision: fp16\n")
    saved = SavedRun(tmp_path)
    chosen = lambda **given: VisualizeConfig(exp_dir="run", **given)._precision(saved)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen() is Precision.fp32
    assert chosen(precision=Precision.bf16) is Precision.bf16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen() is Precision.fp16


WCE = {
    "image_feature_extractor_class_type": "ResNetFeatureExtractor",
    "image_feature_extractor_ResNetFeatureExtractor_args": {"stages": [], "image_rescale": 1.0},
    "view_pooler_enabled": True,
}
CO3D = "JsonIndexDatasetMapProviderV2"
AUTODECODER = {
    "global_encoder_class_type": "SequenceAutodecoder",
    "global_encoder_SequenceAutodecoder_args": {"autodecoder_args": {"encoding_dim": 2, "n_instances": 2}},
}


def several_run(
    folder: Path, provider: str, dataset: dict[str, Any], model: dict[str, Any], name: str = "GenericModel"
) -> Path:
    """A run of one step over several sequences, or of a model that learns nothing an evaluation of one view."""
    if name == "GenericModel":
        model = {
            "implicit_function_class_type": "NeuralRadianceFieldImplicitFunction",
            "implicit_function_NeuralRadianceFieldImplicitFunction_args": SMALL,
            "raysampler_class_type": "NearFarRaySampler",
            "raysampler_NearFarRaySampler_args": {
                "min_depth": 2.0,
                "max_depth": 6.0,
                "n_rays_per_image_sampled_from_mask": 8,
                "n_pts_per_ray_training": 4,
                "n_pts_per_ray_evaluation": 4,
            },
            "render_image_height": 4,
            "render_image_width": 4,
            **model,
        }
    content = {
        "exp_dir": str(folder),
        "data_source_ImplicitronDataSource_args": {
            "dataset_map_provider_class_type": provider,
            f"dataset_map_provider_{provider}_args": dataset,
            "data_loader_map_provider_SequenceDataLoaderMapProvider_args": {
                "dataset_length_train": 1,
                "dataset_length_test": 1,
                "batch_size": 3,
                "images_per_seq_options": [3],
            },
        },
        "model_factory_ImplicitronModelFactory_args": {"model_class_type": name, f"model_{name}_args": model},
        "training_loop_ImplicitronTrainingLoop_args": {
            "max_epochs": 1,
            "validation_interval": 0,
            "eval_only": name != "GenericModel",
        },
    }
    config = OmegaConf.merge(defaults(Experiment), content)
    build(Experiment, config).run(config, [])
    return folder


def category(root: Path) -> dict[str, Any]:
    """The dataset of the category in v2: one sequence to train on, one for val and test."""
    return {
        "category": "solids",
        "subset_name": "fewview_dev",
        "dataset_root": str(root / "v2"),
        "dataset_JsonIndexDataset_args": {"image_height": 12, "image_width": 12, "load_depths": True},
    }


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory: pytest.TempPathFactory, co3d_category: Path) -> Path:
    return several_run(tmp_path_factory.mktemp("wce") / "run", CO3D, category(co3d_category), WCE)


def test_source_views_of_one_of_several_sequences(
    conditioned: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command that the training ends with, and as a user would type it: the same files."""
    out = [tmp_path / "a", tmp_path / "b"]
    for folder, name in zip(
        out, ("'100_12000_23000'", "100_12000_23000"), strict=True
    ):  # which Hydra takes for a number
        words = (f"output_directory={folder}", "n_eval_cameras=2", "n_source_views=3", "render_size=[6,8]")
        assert command(f"exp_dir={conditioned}", f"restrict_sequence_name={name}", *words) == 0
    stem = "video_100_12000_23000"
    names = [f"{stem}_{kind}.mp4" for kind in KINDS] + [f"{stem}_sheet.png", f"{stem}_source_images.png"]
    assert sorted(path.name for path in out[0].iterdir()) == sorted(names)
    assert all((out[0] / name).read_bytes() == (out[1] / name).read_bytes() for name in names if "png" in name)
    with Image.open(out[0] / f"{stem}_source_images.png") as image:
        assert image.size == (2 * 12 + 3 * 4, 2 * 12 + 3 * 4), "two and one"
    with Image.open(out[0] / f"{stem}_sheet.png") as image:
        # source images as they are, two views of 6x8 in four kinds below them
        assert image.size == (3 * 12 + 4 * 4, 12 + 4 * 6 + 6 * 4)
    said = capsys.readouterr().out
    assert "100_12000_23000: the model looks at 3 of " in said and "n_source_views: found" not in said


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory, solids: Path) -> Path:
    """A run that learned codes of two of ten scenes; its test split has views of all."""
    scenes = {"base_dir": str(solids / "many"), "n_held_out_scenes": 8, "evaluate": "ALL_SCENES"}
    return several_run(tmp_path_factory.mktemp("ad") / "run", "MultiSceneDatasetMapProvider", scenes, AUTODECODER)


def test_of_many_sequences_some_are_rendered_and_that_is_said(
    remembering: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"exp_dir={remembering}", "n_eval_cameras=1", "render_size=[2,2]", f"output_directory={tmp_path}")
    assert command(*words, "n_sequences=1") == 0
    assert len(list(tmp_path.glob("*_images_render.mp4"))) == 1
    said = capsys.readouterr().out
    assert "note: n_sequences: renders 1 of the 2 sequences of train; n_sequences=0 renders all" in said
    assert command(*words, "n_sequences=0") == 0
    assert len(list(tmp_path.glob("*_images_render.mp4"))) == 2
    assert "n_sequences" not in capsys.readouterr().out


def test_a_sequence_without_a_code_is_refused_by_name_and_else_left_out(
    remembering: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = SavedRun(remembering).datasets()
    assert datasets.train is not None and datasets.test is not None
    first, second = datasets.train.sequence_names
    assert _to_fly_around(datasets) == [f"restrict_sequence_name={first}"], "what the training says to type next"
    assert _to_fly_around(DatasetMap(test=datasets.test))[0] == "split=test"
    stranger = next(name for name in datasets.test.sequence_names if name not in (first, second))
    words = ("n_eval_cameras=1", "render_size=[2,2]", "split=test", f"output_directory={tmp_path / 'video'}")
    assert command(f"exp_dir={remembering}", *words, f"restrict_sequence_name={stranger}") == 2
    line = capsys.readouterr().err
    assert f"restrict_sequence_name: '{stranger}' is a sequence that the model was not trained on" in line
    assert f"expected one of {first}, {second}" in line
    assert command(f"exp_dir={remembering}", *words) == 0
    assert "note: left out 8 sequences that the model was not trained on" in capsys.readouterr().out
    names = [path.name for path in (tmp_path / "video").glob("*_images_render.mp4")]
    assert sorted(names) == [f"video_{name}_images_render.mp4" for name in sorted((first, second))]

    config: Any = OmegaConf.load(remembering / "expconfig.yaml")
    chosen(config, "data_source", "dataset_map_provider").evaluate = "UNSEEN_SCENES"
    shutil.copytree(remembering, tmp_path / "run")
    OmegaConf.save(config, tmp_path / "run" / "expconfig.yaml")
    assert command(f"exp_dir={tmp_path / 'run'}", *words) == 2
    line = capsys.readouterr().err
    assert "was trained on none of the 8 sequences of test" in line and "split=train" in line
    encoder = chosen(config, "model_factory", "model", "global_encoder")
    encoder.autodecoder_args.unknown_sequences = "mean"
    OmegaConf.save(config, tmp_path / "run" / "expconfig.yaml")
    assert command(f"exp_dir={tmp_path / 'run'}", *words, f"restrict_sequence_name={stranger}") == 0
    assert f"note: {stranger}: was not trained on and has no code" in capsys.readouterr().out


def test_a_model_that_learns_nothing_needs_no_training(
    tmp_path: Path, co3d_category: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Depth-based rendering: an evaluation makes the run's folder, and says what to type."""
    run = several_run(tmp_path / "run", CO3D, category(co3d_category), {}, "ModelDBIR")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  nerf_visualizer"))
    assert command(*shlex.split(line)[1:], "n_eval_cameras=1") == 0
    assert "at step 0 " in capsys.readouterr().out
    assert frames_of(next((run / "video").glob("*_images_render.mp4"))) == [(12, 12, 3)]


def test_source_images_are_shown_live(conditioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, str]] = []
    preview = visualize.VisdomPreview
    monkeypatch.setattr(preview, "source_images", lambda _, pictures, caption: shown.append((len(pictures), caption)))
    VisualizeConfig(
        exp_dir=str(conditioned),
        restrict_sequence_name="100_12000_23000",
        output_directory=str(tmp_path),
        n_source_views=2,
        n_eval_cameras=1,
        render_size=(2, 2),
        visdom_show_preds=True,
        visdom_port=1,
    ).run()
    assert shown == [(2, "100_12000_23000, 2 source views")]
