"""Live previews: what is rendered for them, and that a training is the same with and without them."""

import hashlib
from dataclasses import replace

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import Factory
from nerf_trainer.errors import DataError
from nerf_trainer.experiment import Experiment
from nerf_trainer.frames import FrameData, PixelStore
from nerf_trainer.models.base import Predictions
from nerf_trainer.training.live_preview import chosen_view, resident_view, shrunk
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.session import Session
from nerf_trainer.visualization.plots import History
from tests.training.tiny_run import TinyEvaluator, TinyLoader, TinyModel, TinySource, frame


class Watcher:
    """A preview that a test looks at."""

    def __init__(self, reachable=True):
        self.reachable = reachable
        self.views = []
        self.n_sources = []
        self.curve = []
        self.knocks = 0

    def knock(self):
        self.knocks += 1

    def curves(self, history: History):
        self.curve.append(history.curve("train", "objective")[0])

    def view(self, predictions, split, caption, sources=None):
        assert isinstance(predictions, Predictions)
        self.views.append((split, caption))
        self.n_sources.append(None if sources is None else len(sources))

    def close(self):
        pass


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """The curves' file takes most of the time of a tiny training."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def train(folder, monkeypatch, watcher, source=None, **loop):
    """A small training; the digest of its weights."""
    monkeypatch.setattr(ImplicitronTrainingLoop, "preview", lambda loop, folder, notice: watcher)
    settings = {"max_epochs": 1, "metric_print_interval": 1, **loop}
    Experiment(
        exp_dir=str(folder),
        data_source=TinySource(**(source or {})),
        model_factory=ImplicitronModelFactory(model=Factory.of(TinyModel)),
        training_loop=ImplicitronTrainingLoop(evaluator=TinyEvaluator(), **settings),
    ).run()
    (newest,) = sorted(folder.glob("checkpoints/step-*"))[-1:]
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(("source", "split"), [({}, "val"), ({"has_val": False}, "test")])
def test_the_batch_and_a_view_that_is_not_trained_on_are_shown(tmp_path, monkeypatch, source, split):
    modes, watcher = [], Watcher()
    forward = TinyModel.forward

    def watched(model, frames):
        modes.append(model.training)
        return forward(model, frames)

    monkeypatch.setattr(TinyModel, "forward", watched)
    train(tmp_path, monkeypatch, watcher, source, visualize_interval=3, validation_interval=0)
    assert modes == [True, True, True, False, False, True]
    assert [view[0] for view in watcher.views] == ["train", split]
    assert all("step 3" in caption for _, caption in watcher.views)
    assert watcher.curve[-1] == [1, 2, 3, 4]


@pytest.mark.parametrize(("reachable", "interval"), [(False, 1), (True, 0)])
def test_nothing_is_rendered_where_nobody_sees_it(tmp_path, monkeypatch, reachable, interval):
    watcher = Watcher(reachable)
    train(tmp_path, monkeypatch, watcher, visualize_interval=interval)
    assert watcher.views == [] and watcher.knocks == interval, "who shows curves alone asks for nobody"


def test_nothing_is_rendered_where_the_curves_find_nobody(tmp_path, monkeypatch):
    """The first contact with a server that is not there costs no rendering."""
    watcher = Watcher()
    monkeypatch.setattr(watcher, "curves", lambda history: setattr(watcher, "reachable", False))
    train(tmp_path, monkeypatch, watcher, visualize_interval=2)
    assert watcher.views == []


def test_a_server_that_is_gone_after_a_view_gets_no_other(tmp_path, monkeypatch):
    def view(self, predictions, split, caption, sources=None):
        self.views.append(split)
        self.reachable = False

    monkeypatch.setattr(Watcher, "view", view)
    watcher = Watcher()
    train(tmp_path, monkeypatch, watcher, visualize_interval=1)
    assert watcher.views == ["train"]


def test_models_that_look_at_source_views_are_given_them_and_they_are_shown(tmp_path, monkeypatch):
    batch = replace(FrameData.collate([frame(i) for i in range(4)]), sequence_name=("a", "b", "c", "b"))
    given, forward = [], TinyModel.forward

    def watched(model, frames):
        given.append((model.training, len(frames)))
        return forward(model, frames)

    monkeypatch.setattr(TinyModel, "forward", watched)
    monkeypatch.setattr(TinyModel, "looks_at_source_views", property(lambda model: True))
    monkeypatch.setattr(TinyLoader, "steps", lambda loader, epoch, start=0: iter([batch] * 4))
    watcher = Watcher()
    train(tmp_path, monkeypatch, watcher, visualize_interval=4, validation_interval=0)
    assert given[4:] == [(False, 2), (False, 4)]
    assert watcher.n_sources == [1, 3]
    assert [caption for _, caption in watcher.views] == ["train, step 4, b, frame 1", "val, step 4, a, frame 0"]


def test_drawn_rays_stand_for_the_batch_where_the_model_makes_pictures_of_them(tmp_path, monkeypatch):
    take_step, watcher = Session.take_step, Watcher()

    def with_rays(session, batches, n_steps):
        take_step(session, batches, n_steps)
        session.rasterize = lambda: session.model.eval()(batches[0]).rendered

    monkeypatch.setattr(Session, "take_step", with_rays)
    train(tmp_path, monkeypatch, watcher, visualize_interval=4)
    assert watcher.views[0] == ("train", "train, step 4, drawn rays")


def test_weights_are_the_same_though_previews_draw_numbers(tmp_path, monkeypatch):
    forward = TinyModel.forward

    def drawing(model, frames):
        if not model.training:  # a renderer that jitters in evaluation too, and one that asks torch's own generator
            torch.rand(3, generator=model.stream.on("cpu"))
            torch.rand(3)
        return forward(model, frames)

    without = train(tmp_path / "without", monkeypatch, None, validation_interval=0)
    monkeypatch.setattr(TinyModel, "forward", drawing)
    watcher = Watcher()
    assert train(tmp_path / "with", monkeypatch, watcher, visualize_interval=1, validation_interval=0) == without
    assert len(watcher.views) == 8


@pytest.mark.parametrize("error", [DataError("img.png: damaged"), torch.OutOfMemoryError("CUDA out of memory.\nmore")])
def test_a_view_that_fails_is_told_of_once_and_training_goes_on(tmp_path, monkeypatch, capsys, error):
    def fails(self, predictions, split, caption, sources=None):
        if split == "val":
            raise error
        self.views.append((split, caption))

    monkeypatch.setattr(Watcher, "view", fails)
    watcher = Watcher()
    train(tmp_path, monkeypatch, watcher, visualize_interval=1)
    assert len(watcher.views) == 4
    out = capsys.readouterr().out
    assert out.count("no live previews of val views: ") == 1
    assert str(error).splitlines()[0] in out


def cameras(n, height=8, width=12):
    return Cameras(
        R=torch.eye(3).expand(n, 3, 3),
        T=torch.arange(n).float()[:, None].expand(n, 3),
        focal=torch.tensor([[20.0, 24.0]]).expand(n, 2),
        principal_point=torch.tensor([[6.0, 4.0]]).expand(n, 2),
        image_size_hw=torch.tensor([[height, width]]).expand(n, 2),
    )


def test_a_view_with_others_of_its_sequence_is_chosen_where_these_are_looked_at():
    images = torch.arange(4).float()[:, None, None, None].expand(4, 3, 8, 12)
    batch = FrameData(cameras=cameras(4), image_rgb=images, sequence_name=("a", "b", "c", "b"))
    alone, with_sources = chosen_view(batch, 0, False), chosen_view(batch, 0, True)
    assert alone.sequence_name == ("a",)
    assert with_sources.sequence_name == ("b", "b")
    assert with_sources.image_rgb[:, 0, 0, 0].tolist() == [1.0, 3.0]
    assert chosen_view(batch[:3], 0, True) is None


def test_resident_scenes_show_one_view_after_another():
    pictures = [torch.full((8, 12, 4), i, dtype=torch.uint8) for i in range(3)]
    scene = FrameData(cameras=cameras(3), pixels=PixelStore.from_images(pictures), frame_number=(10, 11, 12))
    seen = [chosen_view(scene, turn, False) for turn in range(4)]
    assert [view.frame_number for view in seen] == [(10,), (11,), (12,), (10,)]
    view = resident_view(scene, 2)
    assert view.pixels is None and view.cameras.T[0, 0] == 2
    assert torch.allclose(view.image_rgb, torch.tensor(2 / 255).expand(1, 3, 8, 12))
    assert torch.allclose(view.fg_probability, torch.tensor(2 / 255).expand(1, 1, 8, 12))


def test_a_resident_view_is_not_turned():
    picture = torch.arange(8 * 12 * 4).reshape(8, 12, 4).remainder(256).to(torch.uint8)
    first = torch.zeros(4, 6, 4, dtype=torch.uint8)
    views = Cameras.cat([cameras(1, 4, 6), cameras(1)])
    view = resident_view(FrameData(cameras=views, pixels=PixelStore.from_images([first, picture])), 1)
    assert torch.equal((view.image_rgb[0] * 255).round().to(torch.uint8), picture[..., :3].permute(2, 0, 1))


def test_a_shrunk_view_sees_the_same():
    depth = torch.zeros(1, 1, 8, 12)
    depth[..., :, 6:] = 5.0
    view = FrameData(cameras=cameras(1), image_rgb=depth.expand(1, 3, 8, 12) / 5, depth_map=depth)
    small = shrunk(view, 6)
    assert small.cameras.image_size_hw.tolist() == [[4, 6]]
    assert small.image_rgb.shape == (1, 3, 4, 6)
    assert small.depth_map[0, 0, 0].tolist() == [0.0, 0.0, 0.0, 5.0, 5.0, 5.0]
    corners, edges = torch.tensor([[[0.0, 0.0], [12.0, 8.0]]]), torch.tensor([[[0.0, 0.0], [6.0, 4.0]]])
    far = torch.ones(1, 2)
    assert torch.allclose(view.cameras.unproject(corners, far), small.cameras.unproject(edges, far))
    assert shrunk(view, 12) is view
