"""Visdom's server: its page's files, that it listens on this machine alone, and a training's panes, through its API and
in a browser."""

import base64
import http.client
import importlib.util
import io
import json
import os
import socket
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from nerf_trainer.errors import ConfigError, StorageError
from nerf_trainer.experiment import main as nerf_runner
from nerf_trainer.visualization import visdom_server
from nerf_trainer.visualization.visdom import VisdomClient
from nerf_trainer.visualization.visdom_server import PAGE_FILES, from_npm, main, put_in_place
from tests.browser_kit import find_browser, opened
from tests.visualization.visdom_servers import free_port, real_server

BLOCK = (255, 0, 160)
"""A colour that neither the page nor a rendering has."""


# The files of the page.


def gives(files):
    return {file: file.target.encode() for file in files}


def unreachable(files):
    raise OSError("no route to host")


@pytest.mark.parametrize("visdom_version", PAGE_FILES)
def test_what_is_missing_is_put_in_place(tmp_path, visdom_version):
    files, asked = PAGE_FILES[visdom_version], []
    kept = tmp_path / files[0].target
    kept.parent.mkdir()
    kept.write_text("as it was")

    def source(wanted):
        asked.extend(wanted)
        return gives(wanted)

    said = []
    put_in_place(tmp_path, visdom_version, {"site": source}, said.append)
    assert asked == list(files[1:])
    assert kept.read_text() == "as it was"
    assert all((tmp_path / file.target).read_text() == file.target for file in files[1:])
    assert (tmp_path / "version.built").read_text() == visdom_version  # else the server fetches everything again
    assert len(said) == 2
    put_in_place(tmp_path, visdom_version, {"site": unreachable}, said.append)
    assert len(said) == 2


def test_files_have_places_of_their_own():
    for files in PAGE_FILES.values():
        assert len({file.target for file in files}) == len(files) > 20


def test_the_next_source_is_asked_where_one_cannot_be_reached(tmp_path):
    said = []
    put_in_place(tmp_path, "0.2.4", {"site": unreachable, "npm": gives}, said.append)
    assert (tmp_path / "js/mathjax/2.7.5/MathJax.js").is_file()
    assert [text.split(" from ")[1] for text in said[:2]] == ["site ...", "npm ..."]


@pytest.mark.parametrize("error", [OSError, http.client.IncompleteRead, tarfile.ReadError])
def test_what_cannot_be_had_is_one_line(tmp_path, error):
    def fails(files):
        raise error(b"half\nof it")

    with pytest.raises(ConfigError) as raised:
        put_in_place(tmp_path, "0.2.4", {"site": fails, "npm": unreachable}, lambda text: None)
    assert "npm: no route to host" in str(raised.value) and "site: " in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert not (tmp_path / "version.built").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "static").write_text("a file")
    with pytest.raises(StorageError, match="can't be written"):
        put_in_place(tmp_path / "static", "0.2.4", {"site": gives}, lambda text: None)


def test_the_server_of_another_version_fetches_its_own(tmp_path):
    put_in_place(tmp_path, "9.9", {"site": unreachable})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm whose packages hold the named files and nothing else."""
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def packing(paths, status=0):
        archive = tmp_path / "package.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            for path in paths:
                member = tarfile.TarInfo(f"package/{path}")
                member.size = len(path)
                tar.addfile(member, io.BytesIO(path.encode()))
        program.write_text(
            f'#!/bin/sh\n[ "$1 $2" = "pack --ignore-scripts" ] || exit 9\necho why >&2\n'
            f'for name; do case "$name" in *@*) cp {archive} "$(echo "$name" | tr @ -).tgz";; esac; done\n'
            f"exit {status}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return packing


def test_files_are_taken_out_of_npms_packages(npm):
    files = PAGE_FILES["0.2.4"]
    npm([file.path for file in files])
    assert from_npm(files) == {file: file.path.encode() for file in files}


@pytest.mark.parametrize(("paths", "status", "reason"), [([], 0, "has no"), ([], 1, "npm ended with 1 why")])
def test_what_npm_does_not_give_is_named(npm, paths, status, reason):
    npm(paths, status)
    with pytest.raises(OSError, match=reason):
        from_npm(PAGE_FILES["0.2.4"])


# The command.


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed visdom whose page is complete."""
    monkeypatch.setattr(visdom_server, "static_folder", lambda: tmp_path / "static")
    monkeypatch.setattr(visdom_server, "version", lambda name: "0.2.4")
    put_in_place(tmp_path / "static", "0.2.4", {"site": gives}, lambda text: None)


def test_the_command_becomes_the_server_on_loopback(installed, monkeypatch, capsys):
    became = []
    monkeypatch.setattr(os, "execve", lambda *words: became.append(words))
    monkeypatch.setenv("VISDOM_PORT", str(port := free_port()))
    monkeypatch.setenv("HOSTNAME", "elsewhere")
    assert main([]) == 0
    ((program, words, environment),) = became
    assert program == sys.executable and "-bind_local" in words and words[words.index("-port") + 1] == str(port)
    assert "HOSTNAME" not in environment
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out


def test_files_only_starts_nothing(installed, monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *words: pytest.fail("started"))
    assert main(["--files-only"]) == 0


def test_a_port_in_use_is_told(installed, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "a server may be running there already" in capsys.readouterr().err


def test_a_missing_visdom_is_told(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([]) == 2
    assert "nerf_trainer[visdom]" in capsys.readouterr().err


# The real server.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a real server."""
    with real_server(tmp_path_factory.mktemp("server")) as port:
        yield port


def asked(port, question, **what):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{question}", json.dumps(what).encode())
    with urllib.request.urlopen(request, timeout=30.0) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith(("{", "[", '"')) else text


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory):
    """A run of the quickstart that showed itself on the server; its folder."""
    folder = tmp_path_factory.mktemp("runs") / "shown"
    loop, loaders = (
        "training_loop_ImplicitronTrainingLoop_args",
        "data_loader_map_provider_ResidentDataLoaderMapProvider",
    )
    sampler = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args.raysampler_AdaptiveRaySampler_args"
    words = [
        "--config-name=quickstart",
        f"exp_dir={folder}",
        f"data_source_ImplicitronDataSource_args.{loaders}_args.dataset_length_train=4",
        f"{sampler}.n_rays_total_training=256",
        f"{sampler}.n_pts_per_ray_evaluation=24",
        f"{loop}.metric_print_interval=1",
        f"{loop}.visualize_interval=4",
        f"{loop}.visdom_port={server}",
        "max_epochs=1",
        "test_when_finished=false",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nerf_runner", *words])
        patch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())  # slow, and not shown
        try:
            nerf_runner()
        except SystemExit as left:
            assert not left.code
    return folder


def wait_for_window(port, env, window):
    end = time.monotonic() + 30.0
    while asked(port, "win_exists", eid=env, win=window) != "true":
        assert time.monotonic() < end, f"no {window} in {env}: there are {asked(port, 'env_state')}"
        time.sleep(0.1)
    return asked(port, "win_data", eid=env, win=window)


def picture_of(window):
    encoded = window["content"]["src"].split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_the_panes_of_a_training_are_on_the_server(server, trained):
    for split in ("train", "test"):
        for kind in ("image", "mask", "depth"):
            window = wait_for_window(server, f"shown_images_{split}", kind)
            assert window["title"].startswith(f"{kind}: rendered")
            assert f"{split}, step 4" in window["content"]["caption"]
    seen = picture_of(wait_for_window(server, "shown_images_train", "image"))
    assert seen.shape[1] > 2 * seen.shape[0]  # two square views next to each other
    objective = wait_for_window(server, "shown_charts", "stat_plot_objective")
    assert objective["content"]["data"][0]["x"] == [1, 2, 3, 4]
    logged = [json.loads(line)["objective"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert objective["content"]["data"][0]["y"] == pytest.approx(logged)


def rectangle(page, window):
    """Where the picture of a window is on the page: left, top, width, height, pixels."""
    find = f"""(() => {{
        const panes = [...document.querySelectorAll('.window')].filter(w => w.innerText.includes('{window}'));
        const r = panes[0].querySelector('img').getBoundingClientRect();
        return [r.x, r.y, r.width, r.height].map(Math.round);
    }})()"""
    return page.evaluate(find)


@pytest.mark.browser
def test_a_browser_shows_the_panes(server, trained, tmp_path):
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    wait_for_window(server, "shown_images_train", "depth")
    block = np.full((200, 260, 3), BLOCK, np.uint8)
    live = VisdomClient("http://127.0.0.1", server, pytest.fail)
    live.image(block, "shown_images_train", "block", "a block of colour")
    live.close(20.0)
    wait_for_window(server, "shown_images_train", "block")
    with opened(browser, tmp_path / "profile", f"http://127.0.0.1:{server}/env/shown_images_train") as page:
        page.wait_for("document.querySelectorAll('.window img').length == 4")
        page.wait_for("[...document.querySelectorAll('.window img')].every(i => i.complete && i.naturalWidth > 0)")
        time.sleep(1.0)  # panes glide to their places
        shot = page.screenshot(tmp_path / "page.png")
        places = {name: rectangle(page, name) for name in ("image: rendered", "mask: rendered", "a block of colour")}
    is_block = (np.abs(shot.astype(int) - BLOCK) <= 2).all(axis=-1)
    rows, columns = np.nonzero(is_block)
    assert is_block.sum() >= 0.95 * block.shape[0] * block.shape[1]
    assert is_block[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].mean() > 0.95
    for kind in ("image", "mask"):
        x, y, width, height = places[f"{kind}: rendered"]
        sent = Image.fromarray(picture_of(asked(server, "win_data", eid="shown_images_train", win=kind)))
        expected = np.asarray(sent.resize((width, height), Image.Resampling.BILINEAR), float)
        assert width >= 400  # nobody needs a magnifying glass
        assert np.abs(shot[y : y + height, x : x + width] - expected).mean() < 6.0
