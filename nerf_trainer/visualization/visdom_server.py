"""Visdom's server on this machine alone, with the scripts of its page in place.

The server fetches these scripts from several sites at its first start, without a limit of time, and ends where one of
them, MathJax's, can't be reached. `python -m nerf_trainer.visualization.visdom_server` puts them in place first, from
unpkg.com, which serves npm's packages file by file, or, where only npm's registry can be reached, by npm; what can't be
had ends it with one line. Then it starts the server on 127.0.0.1, which nobody else can reach.
"""

import argparse
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nerf_trainer.errors import ConfigError, StorageError, UserError
from nerf_trainer.visualization.visdom import PORT_VARIABLE, default_port

SITE = "https://unpkg.com"
_SITE_SECONDS = 10.0
_NPM_SECONDS = 300.0
_BUILT = "version.built"
"""Visdom's own mark of a complete folder: the version whose scripts are in it."""


@dataclass(frozen=True)
class PageFile:
    """A script, style or font of the page."""

    package: str
    """npm's package with its version."""
    path: str
    """The file in the package."""
    target: str
    """Where the page looks for it, under `static`."""


_COMMON = (
    PageFile("jquery@3.1.1", "dist/jquery.min.js", "js/jquery.min.js"),
    PageFile("bootstrap@3.3.7", "dist/js/bootstrap.min.js", "js/bootstrap.min.js"),
    PageFile("bootstrap@3.3.7", "dist/css/bootstrap.min.css", "css/bootstrap.min.css"),
    PageFile("react@16.2.0", "umd/react.production.min.js", "js/react-react.min.js"),
    PageFile("react-dom@16.2.0", "umd/react-dom.production.min.js", "js/react-dom.min.js"),
    PageFile("react-modal@3.1.10", "dist/react-modal.min.js", "js/react-modal.min.js"),
    PageFile("plotly.js-dist-min@2.11.1", "plotly.min.js", "js/plotly-plotly.min.js"),
    PageFile("sjcl@1.0.7", "sjcl.js", "js/sjcl.js"),
    PageFile("layout-bin-packer@1.4.0", "dist/layout-bin-packer.js", "js/layout_bin_packer.js"),
    PageFile("layout-bin-packer@1.4.0", "dist/layout-bin-packer.js.map", "js/layout-bin-packer.js.map"),
    PageFile("d3@3.5.17", "d3.min.js", "js/d3.v3.min.js"),
    PageFile("d3-selection-multi@1.0.1", "build/d3-selection-multi.js", "js/d3-selection-multi.v1.js"),
    PageFile("save-svg-as-png@1.4.17", "lib/saveSvgAsPng.js", "js/saveSvgAsPng.js"),
    PageFile("classnames@2.2.5", "index.js", "fonts/classnames"),
    *(
        PageFile("bootstrap@3.3.7", f"dist/fonts/glyphicons-halflings-regular.{kind}", f"fonts/{target}")
        for kind, target in (
            *((kind, f"glyphicons-halflings-regular.{kind}") for kind in ("eot", "woff2", "woff", "ttf")),
            ("svg", "glyphicons-halflings-regular.svg#glyphicons_halflingsregular"),
        )
    ),
)
_MATHJAX_2 = (
    "MathJax.js",
    "config/Safe.js",
    "config/TeX-AMS-MML_HTMLorMML.js",
    "extensions/Safe.js",
    "jax/output/SVG/config.js",
    "jax/output/SVG/jax.js",
    "jax/output/SVG/fonts/TeX/fontdata.js",
    "jax/output/SVG/fonts/TeX/Size1/Regular/Main.js",
)
PAGE_FILES: Mapping[str, tuple[PageFile, ...]] = {
    "0.2.4": (
        *_COMMON,
        PageFile("react-resizable@1.4.6", "css/styles.css", "css/react-resizable-styles.css"),
        PageFile("react-grid-layout@0.16.3", "css/styles.css", "css/react-grid-layout-styles.css"),
        *(PageFile("mathjax@2.7.5", path, f"js/mathjax/2.7.5/{path}") for path in _MATHJAX_2),
    ),
    "0.3.0": (
        *_COMMON,
        PageFile("react-resizable@3.1.3", "css/styles.css", "css/react-resizable-styles.css"),
        PageFile("react-grid-layout@2.2.3", "css/styles.css", "css/react-grid-layout-styles.css"),
        PageFile("mathjax@3.2.2", "es5/tex-mml-svg.js", "js/mathjax/3.2.2/es5/tex-mml-svg.js"),
    ),
}
"""What the page of each version of visdom needs; the server of any other fetches its own."""

Source = Callable[[Sequence[PageFile]], dict[PageFile, bytes]]
"""Fetches files; raises an error of the connection or the file system with the reason where it can't."""


def from_site(files: Sequence[PageFile]) -> dict[PageFile, bytes]:
    """The files from unpkg.com, one by one."""
    found = {}
    for file in files:
        url = f"{SITE}/{file.package}/{file.path}"
        with urllib.request.urlopen(url, timeout=_SITE_SECONDS) as response:
            found[file] = response.read()
    return found


def from_npm(files: Sequence[PageFile]) -> dict[PageFile, bytes]:
    """The files out of packages that npm fetches and checks; nothing of them is installed or run."""
    packages = tuple(dict.fromkeys(file.package for file in files))
    with tempfile.TemporaryDirectory() as folder:
        command = ("npm", "pack", "--ignore-scripts", "--silent", *packages)
        try:
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SECONDS)
        except subprocess.TimeoutExpired:
            raise OSError(f"npm took longer than {_NPM_SECONDS:.0f} s") from None
        if run.returncode != 0:
            raise OSError(f"npm ended with {run.returncode} {(run.stderr.strip().splitlines() or [''])[-1]}".strip())
        found = {}
        for package in packages:
            archive = Path(folder, f"{package.replace('@', '-')}.tgz")
            with tarfile.open(archive) as tar:
                for file in files:
                    if file.package == package:
                        found[file] = _member(tar, file)
    return found


def _member(tar: tarfile.TarFile, file: PageFile) -> bytes:
    try:
        content = tar.extractfile(f"package/{file.path}")
    except KeyError:
        content = None
    if content is None:
        raise OSError(f"{file.package} has no {file.path}")
    return content.read()


def put_in_place(
    static: Path, visdom_version: str, sources: Mapping[str, Source], say: Callable[[str], None] = print
) -> None:
    """Fetch what the page needs and doesn't have, from the first source that gives it.

    Args:
        static: the folder that the server serves its page from.
        visdom_version: of the server.
        sources: by name, in the order to try them.
        say: told what is done.

    Raises:
        ConfigError: no source can be reached.
        StorageError: the folder can't be written.
    """
    files = PAGE_FILES.get(visdom_version, ())
    missing = [file for file in files if not (static / file.target).is_file()]
    mark = static / _BUILT
    try:
        if missing:
            _write(static, _fetched(missing, sources, say))
            say(f"{len(missing)} files of visdom's page are in {static}")
        if files and (not mark.is_file() or mark.read_text().strip() != visdom_version):
            mark.write_text(visdom_version)
    except OSError as error:
        raise StorageError(
            f"{static}: can't be written ({error.strerror or error}); the files of visdom's page belong there: install"
            " visdom into an environment of your own"
        ) from error


def _fetched(
    files: Sequence[PageFile], sources: Mapping[str, Source], say: Callable[[str], None]
) -> dict[PageFile, bytes]:
    reasons = []
    for name, source in sources.items():
        say(f"fetching {len(files)} files of visdom's page from {name} ...")
        try:
            return source(files)
        except (OSError, http.client.HTTPException, tarfile.TarError) as error:
            reasons.append(f"{name}: {' '.join(str(error).split())[:80]}")
    raise ConfigError(
        f"visdom: the files of its page can't be had ({'; '.join(reasons)}); connect this machine to one of these once,"
        " or copy the folder visdom/static from a machine where they are"
    )


def _write(static: Path, contents: Mapping[PageFile, bytes]) -> None:
    for file, content in contents.items():
        target = static / file.target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(content)
        part.replace(target)


def static_folder() -> Path:
    """The folder that the installed server serves its page from.

    Raises:
        ConfigError: visdom is not installed.
    """
    spec = importlib.util.find_spec("visdom")
    if spec is None or spec.origin is None:
        raise ConfigError("visdom is not installed, expected it for a server; run pip install 'nerf_trainer[visdom]'")
    return Path(spec.origin).parent / "static"


def server_command(port: int, env_path: str | None = None) -> list[str]:
    """What starts the server; it listens on 127.0.0.1 alone.

    Args:
        env_path: folder of saved environments; None for visdom's own.
    """
    saved = ["-env_path", env_path] if env_path else []
    return [sys.executable, "-m", "visdom.server", "-bind_local", "-port", str(port), *saved]


def _check_free(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port}: can't be listened on ({error.strerror}); a server may be running there already:"
                f" look at http://127.0.0.1:{port}, or set another by --port or {PORT_VARIABLE}"
            ) from error


def _run(words: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="visdom_server", description="Start visdom's server on 127.0.0.1.")
    parser.add_argument("--port", type=int, help=f"default: {PORT_VARIABLE}, or 8097")
    parser.add_argument("--env-path", help="folder of saved environments; default: visdom's own, ~/.visdom")
    parser.add_argument("--files-only", action="store_true", help="put the page's files in place and end")
    options = parser.parse_args(words)
    port = default_port() if options.port is None else options.port
    static = static_folder()
    put_in_place(static, version("visdom"), {SITE: from_site, "npm": from_npm})
    if options.files_only:
        return
    _check_free(port)
    print(f"visdom listens on http://127.0.0.1:{port} (this machine alone); Ctrl+C ends it", flush=True)
    # The server names HOSTNAME in the address that it prints, which it can't be reached by.
    environment = {name: value for name, value in os.environ.items() if name != "HOSTNAME"}
    os.execve(sys.executable, server_command(port, options.env_path), environment)


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit code where no server takes the place of the process."""
    try:
        _run(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
