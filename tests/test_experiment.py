"""`Experiment`: built from a configuration, run, and what it says and keeps."""

import json
import shlex
from dataclasses import replace

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from safetensors.torch import load_file

from nerf_trainer.config import Factory, build, defaults
from nerf_trainer.errors import CheckpointError, ConfigError, DataError
from nerf_trainer.experiment import Experiment
from nerf_trainer.frames import FrameContents
from nerf_trainer.geometry.similarity import Similarity
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.loop import ImplicitronTrainingLoop, LoopResult
from nerf_trainer.training.model_factory import ImplicitronModelFactory, ModelFactoryBase
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.progress import Display
from nerf_trainer.training.run_config import OnConflict
from nerf_trainer.training.run_lock import exclusive
from nerf_trainer.training.runtime import Runtime, StatusFile, seed_everything
from nerf_trainer.training.summary import summarize
from tests.training import tiny_run

LOOP = "training_loop_ImplicitronTrainingLoop_args"


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing is the slowest part of a tiny run."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def configured(folder, *overrides):
    base = OmegaConf.create(
        {
            "exp_dir": str(folder),
            "data_source_class_type": "TinySource",
            "model_factory_ImplicitronModelFactory_args": {"model_class_type": "TinyModel"},
            LOOP: {"max_epochs": 2, "evaluator_class_type": "TinyEvaluator"},
        }
    )
    config = defaults(Experiment)
    config.merge_with(base, OmegaConf.from_dotlist(list(overrides)))
    return config


def run(folder, *overrides):
    config = configured(folder, *overrides)
    return build(Experiment, config).run(config)


def test_tiny_components_are_registered():
    assert tiny_run.TinyModel.__name__ in str(defaults(Experiment))


def test_defaults_name_the_references_components():
    config = defaults(Experiment)
    chosen = {key: config[f"{key}_class_type"] for key in ("data_source", "model_factory", "optimizer_factory")}
    assert chosen == {
        "data_source": "ImplicitronDataSource",
        "model_factory": "ImplicitronModelFactory",
        "optimizer_factory": "ImplicitronOptimizerFactory",
    }
    assert config.training_loop_class_type == "ImplicitronTrainingLoop"
    assert (config.seed, config.exp_dir, config.precision.name) == (42, "./data/default_experiment/", "fp32")


def test_run_says_what_it_does_and_keeps_its_configuration(tmp_path, capsys):
    folder = tmp_path / "with 'quotes' and [brackets]"
    run(folder, "precision=bf16")
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    for fact in ("CPU", "bf16", "5 parameters", "starts in"):
        assert fact in first
    saved = OmegaConf.load(folder / "expconfig.yaml")
    assert saved[LOOP].max_epochs == 2 and saved.precision == "bf16"
    assert "model_OverfitModel_args" not in saved.model_factory_ImplicitronModelFactory_args
    assert "\n  nerf_visualizer " in out and "exp_dir=" in out
    assert "eval_only=True" not in out, "how it was started is not known here"
    assert max(len(line) for line in out.splitlines() if line[:1] in "╭│╰") <= 80
    run(folder, "precision=bf16", f"{LOOP}.max_epochs=3")
    assert "resumes from step 8" in capsys.readouterr().out.splitlines()[0]


def test_saved_configuration_builds_the_same_run(tmp_path):
    run(tmp_path)
    saved = OmegaConf.load(tmp_path / "expconfig.yaml")
    assert build(Experiment, saved).run(saved).step == 8


def test_other_settings_in_a_used_folder(tmp_path, capsys):
    run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="seed: 42 -> 7"):
        run(tmp_path / "run", "seed=7")
    run(tmp_path / "run", "seed=7", "on_conflict=new")
    assert (tmp_path / "run-2" / "checkpoints").is_dir()
    assert run(tmp_path / "run", "seed=7", "on_conflict=resume", f"{LOOP}.max_epochs=3").step == 12


def test_shorthands_reach_the_components():
    source = tiny_run.TinySource()
    experiment = Experiment(data_source=source, eval_only=True, max_epochs=7, resume_epoch=3, force_resume=True)
    assert isinstance(experiment.training_loop, ImplicitronTrainingLoop)
    assert isinstance(experiment.model_factory, ImplicitronModelFactory)
    assert (experiment.training_loop.eval_only, experiment.training_loop.max_epochs) == (True, 7)
    assert (experiment.model_factory.resume_epoch, experiment.model_factory.force_resume) == (3, True)
    assert experiment.training_loop.test_when_finished is False


class Fixed(ModelFactoryBase):
    """Knows no resume_epoch."""

    def __call__(self, exp_dir, store, eval_only, is_main=True):
        return self.new_model(), None

    def new_model(self):
        return tiny_run.TinyModel()


def test_shorthand_that_a_component_lacks_is_a_config_error():
    with pytest.raises(ConfigError, match="resume_epoch: Fixed has no such option"):
        Experiment(data_source=tiny_run.TinySource(), model_factory=Fixed(), resume_epoch=1)


def test_failure_is_in_the_status_file(tmp_path):
    class NoData(tiny_run.TinySource):
        def get_datasets_and_dataloaders(self):
            raise DataError("transforms.json: not there; expected it; add it")

    factory = ImplicitronModelFactory(model=Factory.of(tiny_run.TinyModel))
    with pytest.raises(DataError):
        Experiment(exp_dir=str(tmp_path), data_source=NoData(), model_factory=factory).run()
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 3)
    assert "transforms.json" in status["message"]
    assert not (tmp_path / "expconfig.yaml").exists()


def test_eval_only_leaves_status_and_configuration_alone(tmp_path):
    run(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("status.json", "expconfig.yaml", "metrics.jsonl")}
    result = run(tmp_path, f"{LOOP}.eval_only=True")
    assert "psnr_full_image" in result.last_rows["test"]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_evaluating_needs_no_lock_and_no_place_to_write(tmp_path):
    run(tmp_path)
    with exclusive(tmp_path):
        assert "psnr_full_image" in run(tmp_path, f"{LOOP}.eval_only=True").last_rows["test"]
        with pytest.raises(CheckpointError, match="is in use by"):
            run(tmp_path, f"{LOOP}.max_epochs=3")


def test_what_to_type_next(tmp_path, capsys):
    folder = tmp_path / "it's a run, seed=1"
    config = configured(folder, "plugins=[tests/training/tiny_run.py]")
    words = ["--config-dir", "my dir", f"exp_dir={folder}", "eval_only=False"]
    build(Experiment, config).run(config, words)
    again, show = (shlex.split(line) for line in capsys.readouterr().out.split("\nnext:\n")[1].splitlines())
    assert again == ["nerf_runner", *words[:3], "eval_only=True"]
    assert show[0] == "nerf_visualizer" and show[2] == "plugins=[tests/training/tiny_run.py]"
    (override,) = OverridesParser.create().parse_overrides([show[1]])
    assert override.value() == str(folder)


def test_the_box_names_the_network_of_lpips_and_keeps_to_the_screen(tmp_path, capsys):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    (folder / "results_test.json").write_text(json.dumps([{"step": 8, "lpips_net": "alex"}]))
    row = {"step": 8, "epoch": 1, "split": "test", "psnr_full_image": 30.0, "lpips_full_image": 0.125}
    summarize(folder, Runtime(0), LoopResult(8, 2, {"test": row}), 1.0)
    out = capsys.readouterr().out
    assert "lpips_full_image (alex) 0.125" in " ".join(out.replace("│", " ").split())
    assert max(map(len, out.splitlines())) <= 80


class Namer(tiny_run.TinySource):
    """Two sequences."""

    def get_datasets_and_dataloaders(self):
        class Loader(tiny_run.TinyLoader):
            contents = FrameContents(sequence_names=("bear", "cup"))

        datasets, loaders = super().get_datasets_and_dataloaders()
        return datasets, replace(loaders, train=Loader(4))


class Learner(tiny_run.TinyModel):
    """Remembers, among all of its kind, what it was told and with which weights."""

    told = []

    def learn_sequences(self, names):
        Learner.told.append((tuple(names), self.grid.values.tolist()))
        self.learned = True


class AfterLearning(ImplicitronOptimizerFactory):
    """Insists on a model that was told."""

    def __call__(self, model):
        assert model.learned
        return super().__call__(model)


def test_every_model_is_told_the_sequences_before_it_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("nerf_trainer.training.dead_start._PATIENCE", 6)
    monkeypatch.setattr(tiny_run.TinyModel, "made", 0)
    monkeypatch.setattr(Learner, "told", [])

    def again(max_epochs, **loop):
        return Experiment(
            exp_dir=str(tmp_path),
            data_source=Namer(),
            model_factory=ImplicitronModelFactory(model=Factory.of(Learner, dead_seeds=1)),
            optimizer_factory=AfterLearning(),
            training_loop=ImplicitronTrainingLoop(max_epochs=max_epochs, evaluator=tiny_run.TinyEvaluator(), **loop),
        ).run()

    again(2)
    assert [names for names, _ in Learner.told] == [("bear", "cup")] * 2, "the dead one, and the one after it"
    tensors = load_file(CheckpointStore(tmp_path).latest().path / "model.safetensors")
    again(3)
    again(3, eval_only=True)
    (resumed, weights), (evaluated, _) = Learner.told[2:]
    assert resumed == ("bear", "cup") and weights == tensors["grid.values"].tolist(), "after its weights were loaded"
    assert evaluated == (), "only what a checkpoint knows is evaluated"


class Refuser(tiny_run.TinySource):
    """Draws from the global generator, as a plug-in may, and then has no data."""

    def get_datasets_and_dataloaders(self):
        torch.rand(3)
        if self.n_steps == 0:
            raise DataError("poses_bounds.npy: row 0: expected bounds with 0 < near < far, found 4 and 4")
        return super().get_datasets_and_dataloaders()


def test_data_are_refused_before_a_model_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_run.TinyModel, "made", 0)
    factory = ImplicitronModelFactory(model=Factory.of(tiny_run.TinyModel))
    with pytest.raises(DataError, match="row 0: expected bounds"):
        Experiment(exp_dir=str(tmp_path), data_source=Refuser(n_steps=0), model_factory=factory).run()
    assert tiny_run.TinyModel.made == 0


def test_first_weights_are_the_seeds_whatever_reading_the_data_draws(tmp_path):
    weights = []
    for source in (tiny_run.TinySource(), Refuser()):
        experiment = Experiment(
            exp_dir=str(tmp_path),
            data_source=source,
            model_factory=ImplicitronModelFactory(model=Factory.of(tiny_run.TinyModel)),
        )
        run, _ = experiment._prepare(tmp_path, None, Runtime(42), Display(False), StatusFile(None))
        weights.append(run.model.grid.values.detach())
    seed_everything(42)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], tiny_run.TinyModel().grid.values)


class Mover(tiny_run.TinySource):
    """Its world is shifted by so much."""

    shift: float = 0.0

    def get_datasets_and_dataloaders(self):
        datasets, loaders = super().get_datasets_and_dataloaders()
        by = replace(Similarity.identity(), translation=torch.tensor([self.shift, 0.0, 0.0]).double())
        return replace(datasets, dataset_from_world=by if self.shift else None), loaders


def test_a_run_goes_on_in_its_own_world(tmp_path, capsys):
    def again(shift, max_epochs, **options):
        Experiment(
            exp_dir=str(tmp_path),
            data_source=Mover(shift=shift),
            model_factory=ImplicitronModelFactory(model=Factory.of(tiny_run.TinyModel)),
            training_loop=ImplicitronTrainingLoop(max_epochs=max_epochs, evaluator=tiny_run.TinyEvaluator()),
            **options,
        ).run(OmegaConf.create({"seed": 42}))
        return capsys.readouterr().out

    for shift in (0.25, 0.25 + 1e-7):
        assert "another world" not in again(shift, 2)
    kept = (tmp_path / "dataset_from_world.json").read_bytes()
    for shift in (0.3, 0.0):
        with pytest.raises(CheckpointError, match=r"dataset_from_world\.json: .* another world .*exp_dir") as caught:
            again(shift, 3)
        assert len(str(caught.value)) < 400
    assert (tmp_path / "dataset_from_world.json").read_bytes() == kept
    assert "note: dataset_from_world.json" in again(0.3, 3, eval_only=True)
    assert (tmp_path / "dataset_from_world.json").read_bytes() == kept
    assert "note: dataset_from_world.json" in again(0.3, 3, on_conflict=OnConflict.resume)
    assert "another world" not in again(0.3, 4)


class Talkative(tiny_run.TinySource):
    """Has something to say."""

    def get_datasets_and_dataloaders(self):
        datasets, loaders = super().get_datasets_and_dataloaders()
        return replace(datasets, notices=("the data is odd",)), loaders


def test_notices_of_the_data_follow_the_first_line(tmp_path, capsys):
    factory = ImplicitronModelFactory(model=Factory.of(tiny_run.TinyModel))
    loop = ImplicitronTrainingLoop(max_epochs=1, evaluator=tiny_run.TinyEvaluator())
    Experiment(exp_dir=str(tmp_path), data_source=Talkative(), model_factory=factory, training_loop=loop).run()
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("nerf_trainer ") and second == "note: the data is odd"


@pytest.mark.parametrize("seconds", [".nan", ".inf", "0", "-1", "1e7"])
def test_a_timeout_is_a_number_of_seconds(tmp_path, seconds):
    with pytest.raises(ConfigError, match=r"rank_timeout: found .*, expected a number of seconds above 0, at most"):
        build(Experiment, configured(tmp_path, f"rank_timeout={seconds}"))
