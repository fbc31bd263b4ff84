"""nerf_model as it is typed: a run of another project's file, which evaluates and renders by the printed commands."""

import io
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nerf_trainer import experiment, visualize
from nerf_trainer.fields.base import FieldInputs
from nerf_trainer.model import main
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.visualize import SavedRun
from tests.command_kit import Typed, typed
from tests.imports.published import MODEL, Table, Yenchenlin, encoded
from tests.scene_kit import straight_rays

SMALL = Yenchenlin(depth=3, width=16, n_position=2, n_direction=1)
DATA = "data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args"
SMALL_VIEWS = (
    f"{MODEL}.render_image_height=4",
    f"{MODEL}.render_image_width=4",
    f"{DATA}.testskip=20",
    f"{MODEL}.raysampler_NearFarRaySampler_args.n_pts_per_ray_evaluation=6",
    f"{MODEL}.renderer_MultiPassEmissionAbsorptionRenderer_args.n_pts_per_ray_fine_evaluation=6",
)


@dataclass(frozen=True)
class Imported:
    """What `import` made and said."""

    folder: Path
    out: str


@pytest.fixture
def nerf_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    """The command, where the recipe's scene is the embedded one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)
    monkeypatch.setenv("BLENDER_DATASET_ROOT", "scene:/")
    monkeypatch.setenv("BLENDER_SINGLESEQ_CLASS", "quickstart")
    return typed("nerf_model", main, monkeypatch, capsys)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coarse and a fine network as yenchenlin's trainer writes them."""
    tables: dict[str, Table] = {"network_fn_state_dict": SMALL.table(1), "network_fine_state_dict": SMALL.table(2)}
    path = tmp_path_factory.mktemp("files") / "001200.tar"
    torch.save({"global_step": 1200, **tables, "optimizer_state_dict": {}}, path)
    return path


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """The file as a run, in a folder with a blank in its name."""
    folder, out = tmp_path_factory.mktemp("runs") / "a run", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setenv("BLENDER_DATASET_ROOT", "scene:/")
        patch.setenv("BLENDER_SINGLESEQ_CLASS", "quickstart")
        patch.setattr(sys, "argv", ["nerf_model", "import", str(file), f"exp_dir={folder}", *SMALL_VIEWS])
        main()
    return Imported(folder, out.getvalue())


def test_the_printed_commands_evaluate_and_render(
    nerf_model: Typed, run: Imported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "yenchenlin's nerf-pytorch, coarse and fine 3x16, 2 frequencies of position, 1 of direction, 1200" in run.out
    field = "implicit_function_NeuralRadianceFieldImplicitFunction_args"
    assert f"set below {MODEL}:\n" in run.out
    assert f"  {field}.n_layers_xyz: 8 -> 3\n" in run.out and f"  coarse_{field}.append_xyz: [5] -> []\n" in run.out
    assert f"run written to {run.folder}" in run.out
    evaluate, render = [shlex.split(line) for line in run.out.partition("next:\n")[2].splitlines()]
    assert evaluate[0] == "nerf_runner" and evaluate[-1] == "eval_only=True"
    code, out, err = typed("nerf_runner", experiment.main, monkeypatch, capsys)(*evaluate[1:])
    assert code == 0 and "evaluates step 1200" in out, err
    assert "other settings" not in out, "it is evaluated with what was imported"
    assert (run.folder / "results_test.json").is_file()
    assert render[0] == "nerf_visualizer"
    words = (*render[1:], "n_eval_cameras=2", "render_size=[6,6]")
    code, out, err = typed("nerf_visualizer", visualize.main, monkeypatch, capsys)(*words)
    assert code == 0 and list((run.folder / "video").glob("*.mp4")), err
    # Without an optimizer's state it is not trained on, whatever the number of epochs.
    code, _, err = typed("nerf_runner", experiment.main, monkeypatch, capsys)(*evaluate[1:-1], "max_epochs=9999")
    assert code == 4 and "holds no optimizer state" in err and "evaluated, not continued" in err
    assert err.count("\n") == 1 and CheckpointStore(run.folder).latest().state.step == 1200


def test_the_run_has_the_files_weights_and_steps(run: Imported) -> None:
    """A trunk without skips, by hand: the density of both fields at points along a ray."""
    checkpoint = CheckpointStore(run.folder).latest()
    assert checkpoint is not None and (checkpoint.state.step, checkpoint.state.epoch) == (1200, 0)
    model, step = SavedRun(run.folder).model()
    assert isinstance(model, OverfitModel) and step == 1200
    rays = straight_rays(n=1, far=2.0, n_samples=5)
    for seed, field in zip((1, 2), model.passes()):
        table, h = SMALL.table(seed), encoded(rays.points, 2)
        for i in range(3):
            h = (h @ table[f"pts_linears.{i}.weight"].T + table[f"pts_linears.{i}.bias"]).relu()
        density = h @ table["alpha_linear.weight"].T + table["alpha_linear.bias"]
        torch.testing.assert_close(field(rays, FieldInputs()).densities, density, rtol=1e-4, atol=1e-4)


def test_a_projection_that_is_learned_from_views_comes_from_the_data(
    nerf_model: Typed, file: Path, llff_scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NDC rays: the file has no such buffer, the recipe's photographs give it; without them it is an error."""
    monkeypatch.setenv("LLFF_DATASET_ROOT", str(llff_scene.parent))
    monkeypatch.setenv("LLFF_SINGLESEQ_CLASS", llff_scene.name)
    code, _, err = nerf_model("import", str(file), "exp_dir=run", "--config-name", "nerf_llff")
    assert code == 0, err
    model, _ = SavedRun(Path("run")).model()
    buffer = dict(model.named_buffers())["raysampler._cotangents"]
    assert buffer.isfinite().all() and Path("run/dataset_from_world.json").is_file()
    monkeypatch.setenv("LLFF_DATASET_ROOT", "nowhere")
    code, _, err = nerf_model("import", str(file), "exp_dir=other", "--config-name", "nerf_llff")
    assert code == 2 and "raysampler._cotangents: not in the file, learned from the data" in err
    assert not Path("other").exists()


def test_a_folder_with_a_run_is_refused_or_left_alone(
    nerf_model: Typed, file: Path, run: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before the data are looked at; with on_conflict=new another is made, here without the data at hand."""
    monkeypatch.delenv("BLENDER_DATASET_ROOT")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    code, _, err = nerf_model("import", str(file), f"exp_dir={run.folder}")
    assert code == 4 and f"exp_dir: {run.folder} holds a run; use another exp_dir, or on_conflict=new" in err
    code, out, err = nerf_model("import", str(file), f"exp_dir={run.folder}", "on_conflict=new")
    assert code == 0, err
    beside = run.folder.with_name("a run-2")
    assert f"run written to {beside}" in out and str(OmegaConf.load(beside / "expconfig.yaml").exp_dir) == str(beside)
    assert "notice: the data were not looked at (" in out and "BLENDER_DATASET_ROOT" in out
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("import",), 2, "no FILE is named; expected nerf_model import FILE exp_dir=FOLDER"),
        (("import", "FILE"), 2, "exp_dir: not given"),
        (("import", "FILE", "exp_dir="), 2, "exp_dir: not given"),
        (("import", "missing.tar", "exp_dir=run"), 4, "found nothing at missing.tar"),
        (("imprt", "FILE"), 2, "did you mean 'import'?"),
        (
            (
                *("import", "FILE", "exp_dir=run"),
                f"{MODEL}.implicit_function_NeuralRadianceFieldImplicitFunction_args.n_layers_xyz=5",
            ),
            2,
            "n_layers_xyz: found 5, but the file says 3; leave it out",
        ),
    ],
)
def test_bad_input_is_one_line(nerf_model: Typed, file: Path, words: tuple[str, ...], code: int, said: str) -> None:
    found, out, err = nerf_model(*(str(file) if word == "FILE" else word for word in words))
    assert found == code and said in err, err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) <= 400 + len("error: \n")
    assert not Path("run").exists() and "Traceback" not in out + err


def test_a_file_that_fits_no_model_is_refused_and_leaves_nothing(nerf_model: Typed, file: Path) -> None:
    content = torch.load(file, weights_only=True)
    content["network_fine_state_dict"]["views_linears.0.bias"] = torch.zeros(3)
    torch.save(content, "other.tar")
    code, _, err = nerf_model("import", "other.tar", "exp_dir=run")
    assert code == 4 and "views_linears.0.bias is 3, expected 8" in err
    assert not Path("run").exists()


@pytest.mark.parametrize("words", [("--help",), ("import", "--help")])
def test_help(nerf_model: Typed, words: tuple[str, ...]) -> None:
    code, out, _ = nerf_model(*words)
    assert code == 0 and "nerf_model import FILE exp_dir=FOLDER" in out
