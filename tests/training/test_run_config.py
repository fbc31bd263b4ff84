import pytest
import yaml
from omegaconf import OmegaConf

from nerf_trainer.errors import CheckpointError
from nerf_trainer.training.run_config import (
    OnConflict,
    derived_changes,
    differences,
    digest,
    other_settings,
    save,
    settle_folder,
    to_text,
    without_effect,
)

CONFIG = {
    "exp_dir": "a",
    "seed": 1,
    "model_factory_class_type": "F",
    "model_factory_F_args": {"model_class_type": "M", "model_M_args": {"width": 8, "milestones": [1, 2]}},
    "model_factory_G_args": {"unused": 1},
    "training_loop_L_args": {"max_epochs": 3, "clip_grad": 0.0, "evaluator_E_args": {"x": 1}, "visdom_port": 1},
    "root": "${oc.env:A_SECRET_OF_THE_USER}",
}


def changed(**values):
    """CONFIG with some values changed, as text; double underscores stand for dots."""
    config = OmegaConf.create(yaml.safe_load(yaml.safe_dump(CONFIG)))
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return to_text(config)


def used(folder, text):
    (folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    save(folder, text)
    return folder


def test_text_is_pruned_and_unresolved(monkeypatch):
    monkeypatch.setenv("A_SECRET_OF_THE_USER", "hunter2")
    text = changed()
    assert "hunter2" not in text and "${oc.env:A_SECRET_OF_THE_USER}" in text
    assert "unused" not in text


@pytest.mark.parametrize(
    "key",
    ["seed", "root", "model_factory_F_args__model_M_args__width", "training_loop_L_args__clip_grad"],
)
def test_what_changes_a_training_differs(key):
    assert list(differences(changed(), changed(**{key: 7}))) == [key.replace("__", ".")]
    assert digest(changed()) != digest(changed(**{key: 7}))


@pytest.mark.parametrize(
    "key",
    ["exp_dir", "on_conflict", "eval_only", "max_epochs", "plugins", "training_loop_L_args__max_epochs"]
    + ["training_loop_L_args__visdom_port", "training_loop_L_args__evaluator_E_args__x", "resume_epoch"]
    + ["training_loop_L_args__validation_interval", "training_loop_L_args__store_checkpoints_purge"],
)
def test_what_changes_no_step_may_differ(key):
    assert differences(changed(), changed(**{key: 7})) == {}
    assert digest(changed()) == digest(changed(**{key: 7}))


def test_lists_differ_as_a_whole():
    new = changed(model_factory_F_args__model_M_args__milestones=[1, 3])
    assert differences(changed(), new) == {"model_factory_F_args.model_M_args.milestones": ([1, 2], [1, 3])}


def test_conflict_is_an_error_that_names_the_keys(tmp_path):
    folder = used(tmp_path / "run", changed())
    with pytest.raises(CheckpointError, match=r"on_conflict=new.*\(seed: 1 -> 2\)") as error:
        settle_folder(folder, changed(seed=2), OnConflict.error)
    assert error.value.exit_code == 4 and len(str(error.value)) < 400
    assert settle_folder(folder, changed(exp_dir="elsewhere"), OnConflict.error) == folder


def test_an_option_that_is_newer_than_a_run_had_its_default(tmp_path):
    """As its default now and then; another value is a conflict, and so is an option that nobody knows."""
    defaults = OmegaConf.create(
        {"optimizer_O_args": {"eps": 1e-8, "betas": [0.9, 0.99], "of": {"x": None}}, "y": "???"}
    )
    folder = used(tmp_path / "run", changed(optimizer_O_args__lr=0.1))
    same = {"lr": 0.1, "eps": 1e-8, "betas": [0.9, 0.99], "of": {"x": None}}
    assert settle_folder(folder, changed(optimizer_O_args=same), OnConflict.error, lambda: defaults) == folder
    assert other_settings(folder, changed(optimizer_O_args=same), lambda: defaults) == []
    for options in ({"optimizer_O_args": {**same, "eps": 1e-15}}, {"optimizer_O_args": {**same, "z": 1}}, {"y": 1}):
        with pytest.raises(CheckpointError, match="holds a run with other settings"):
            settle_folder(folder, changed(**{"optimizer_O_args": same, **options}), OnConflict.error, lambda: defaults)


def test_conflict_may_be_resumed(tmp_path):
    folder = used(tmp_path / "run", changed())
    assert settle_folder(folder, changed(seed=2), OnConflict.resume) == folder


def test_new_folder_is_found_again_by_the_same_command(tmp_path):
    folder = used(tmp_path / "run", changed())
    assert settle_folder(folder, changed(seed=2), OnConflict.new) == tmp_path / "run-2"
    used(tmp_path / "run-2", changed(seed=2))
    assert settle_folder(folder, changed(seed=2), OnConflict.new) == tmp_path / "run-2"
    assert settle_folder(folder, changed(seed=3), OnConflict.new) == tmp_path / "run-3"


def test_folder_without_checkpoints_is_free(tmp_path):
    save(tmp_path, changed())
    assert settle_folder(tmp_path, changed(seed=2), OnConflict.error) == tmp_path


def test_values_that_follow_a_free_key_are_said(tmp_path):
    follows = {
        "training_loop_L_args__step_size": "${training_loop_L_args.max_epochs}",
        "training_loop_L_args__metric_print_interval": "${training_loop_L_args.max_epochs}",
    }
    save(tmp_path, changed(**follows))
    assert derived_changes(tmp_path, changed(**follows)) == []
    (notice,) = derived_changes(tmp_path, changed(**follows, training_loop_L_args__max_epochs=5))
    assert notice.startswith("training_loop_L_args.step_size: was 3, is 5 from here on (${training_loop_L_args.max")
    assert "\n" not in notice
    assert differences(changed(**follows), changed(**follows, training_loop_L_args__max_epochs=5)) == {}


def test_interpolations_of_the_environment_stay_unseen(tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET_OF_THE_USER", "hunter2")
    save(tmp_path, changed())
    assert derived_changes(tmp_path, changed(training_loop_L_args__max_epochs=5)) == []
    monkeypatch.delenv("A_SECRET_OF_THE_USER")
    assert derived_changes(tmp_path, changed()) == []


def test_a_folder_without_a_run_says_nothing(tmp_path):
    assert derived_changes(tmp_path, changed()) == []


def test_an_evaluation_says_what_it_sets_otherwise(tmp_path):
    folder = used(tmp_path, changed())
    assert other_settings(folder, changed()) == []
    (notice,) = other_settings(folder, changed(seed=2))
    assert "seed: 1 -> 2" in notice


def test_options_of_what_is_not_chosen_are_named() -> None:
    words = [
        "model_factory_G_args.unused=2",
        "model_factory_F_args.model_M_args.width=9",
        "+model_factory_F_args.model_M_args.more=9",
        "seed=3",
        "~seed",
        "--config-name",
    ]
    (notice,) = without_effect(OmegaConf.create(CONFIG), words)
    assert notice.startswith("model_factory_G_args.unused: has no effect") and "model_factory_G_args" in notice
