"""`nerf_data`: looks at a dataset before it is trained on (`check`), and writes it in another format (`convert`).

Both read data through the configuration that `nerf_runner` has, so that what is checked is what will be trained on. The
word `data_source=FOLDER` stands for the options that read a folder, whose format is told by its files.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from nerf_trainer import launch
from nerf_trainer.cameras.conventions import Reading
from nerf_trainer.command_line import assignment, run_verb, shell_line
from nerf_trainer.config import Configurable, build, registry
from nerf_trainer.data.files import SCENE_SCHEME
from nerf_trainer.data.inspection.diagnosis import Finding, diagnose
from nerf_trainer.data.inspection.exports import ExportFormat, ExportOptions, export
from nerf_trainer.data.inspection.formats import recognise
from nerf_trainer.data.inspection.frames import inspect
from nerf_trainer.data.source import DataSourceBase, ImplicitronDataSource
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, DataError, StorageError, UserError, keyed_line, shown, unknown_name
from nerf_trainer.experiment import Experiment
from nerf_trainer.override_words import with_quoted_names
from nerf_trainer.visualization.data_pictures import contact_sheet_of, frusta_of
from nerf_trainer.visualization.data_report import DataReport

_SOURCE = "data_source_ImplicitronDataSource_args"
_PROVIDER = f"{_SOURCE}.dataset_map_provider"
_FIRST_RECIPES = {
    "BlenderDatasetMapProvider": "nerf_blender",
    "ColmapDatasetMapProvider": "nerf_colmap",
    "LlffDatasetMapProvider": "nerf_llff",
    "MultiSceneDatasetMapProvider": "solids_nerf_wce",
    "RenderedMeshDatasetMapProvider": "nerf_mesh",
    "TinyNerfDatasetMapProvider": "nerf_tiny",
    "TransformsJsonDatasetMapProvider": "nerf_photos",
}
"""The recipe to begin with on the data of a provider, as docs/data/index.md has it; CO3D's is generated_nerf_wce."""


class CheckOptions(Configurable):
    """The keys of `nerf_data check`."""

    output_directory: str = ""
    """Where the pictures and report.json go; empty: `nerf_data/NAME` in the working directory."""
    max_images: int = 0
    """Decode at most so many images, spread evenly; 0 for all."""

    def __post_init__(self) -> None:
        if self.max_images < 0:
            raise ConfigError(f"max_images: found {self.max_images}, expected 0 (all) or more")


class ConvertOptions(Configurable):
    """The keys of `nerf_data convert`."""

    output_directory: str
    """The folder to make; it may not hold anything yet."""
    format: ExportFormat = ExportFormat.transforms_json
    """transforms_json or blender."""
    keep_frame: bool = False
    """Keep what the provider did to the world (recentring, scaling); else the world of the files is restored."""
    repair: Reading = Reading.AS_READ
    """Read the poses as if they were written in another convention: the name that `check` suspects."""


class NerfDataCheck(CheckOptions, Experiment):
    """A run's configuration, and what `nerf_data check` is asked for; no model is made of it."""


class NerfDataConvert(ConvertOptions, Experiment):
    """A run's configuration, and what `nerf_data convert` is asked for; no model is made of it."""


_CHECK_SUMMARY = """\
looks at a dataset before it is trained on

  data_source=FOLDER        the data; its format is told by its files (or name a recipe, and data_source_... keys)
  output_directory=FOLDER   where frusta.png, contact_sheet.png and report.json go (nerf_data/NAME)
  max_images=0              decode at most so many images; 0 for all

Exit codes: 0 nothing is wrong, 3 something is wrong that a training would suffer from."""
_CONVERT_SUMMARY = """\
writes a dataset in another format

  data_source=FOLDER        the data; its format is told by its files (or name a recipe, and data_source_... keys)
  output_directory=FOLDER   the folder to make; nothing is overwritten
  format=transforms_json    nerfstudio's transforms.json, or blender
  repair=AS_READ            how to read the poses, where check suspects another convention
  keep_frame=False          keep what the provider did to the world"""
_HELP = """\
nerf_data: looks at a dataset, and writes it in another format

usage: nerf_data check data_source=FOLDER [key=value ...]
       nerf_data convert data_source=FOLDER output_directory=FOLDER [format=transforms_json|blender] [key=value ...]

nerf_data check --help and nerf_data convert --help say more.
"""


@dataclasses.dataclass(frozen=True)
class Source:
    """Data to look at."""

    source: DataSourceBase
    """What reads it."""
    name: str
    """Its name, for titles and folders."""

    @classmethod
    def of(cls, config: DictConfig) -> "Source":
        """The data of a composed configuration; nothing else of the configuration is built."""
        known = [found.__name__ for found in registry.get_all(DataSourceBase)]
        chosen = str(config.get("data_source_class_type"))
        if chosen not in known:
            raise ConfigError(f"data_source_class_type: {unknown_name(chosen, 'is not a known DataSourceBase', known)}")
        section = config.get(f"data_source_{chosen}_args")
        if section is not None and OmegaConf.is_missing(section, "dataset_map_provider_class_type"):
            raise ConfigError("data_source: no data is named; expected data_source=FOLDER, or --config-name RECIPE")
        source = build(registry.get(DataSourceBase, chosen), section if section is not None else {})
        for key in ("object_name", "category", "base_dir", "data_file", "dataset_root"):
            value = cls._provider_option(section, key)
            if value:
                name = re.sub(r"[^\w.-]+", "_", Path(value).stem if "/" in value else value).strip("_.")
                return cls(source, name or "data")
        return cls(source, "data")

    def datasets(self, problems: list[Finding]) -> DatasetMap:
        """The splits. Frames that can't be read are left out where the format allows it, each a fault in `problems`;
        so is what the loaders have to say."""
        source = self.source
        if not isinstance(source, ImplicitronDataSource):
            return source.get_datasets_and_dataloaders()[0]
        provider = source.dataset_map_provider
        try:
            datasets = provider.get_dataset_map()
        except DataError as error:
            try:
                provider.leave_out_bad_frames(most=1.0)
                datasets = provider.get_dataset_map()
            except UserError:
                raise error from error
            left_out = [notice for notice in datasets.notices if notice.startswith("left out")]
            problems += [Finding("fault", "frames", notice) for notice in left_out] or [
                Finding("fault", "frames", str(error))
            ]
        try:
            source.data_loader_map_provider.get_data_loader_map(datasets)
        except UserError as error:
            problems.append(Finding("fault", "loader", str(error)))
        return datasets

    @staticmethod
    def _provider_option(section: DictConfig | None, key: str) -> str:
        chosen = OmegaConf.select(section, "dataset_map_provider_class_type") if section is not None else None
        options = None if section is None else section.get(f"dataset_map_provider_{chosen}_args")
        if options is None or key not in options or OmegaConf.is_missing(options, key):
            return ""
        return str(options[key] or "")


def check(options: CheckOptions, source: Source, words: Sequence[str], console: Console) -> None:
    """Look at a dataset; print, draw and write what was found.

    Raises:
        DataError: something is wrong with it, said in one line after everything else.
    """
    problems: list[Finding] = []
    datasets = source.datasets(problems)
    inspection = inspect(datasets, options.max_images)
    diagnosis = diagnose(inspection, datasets)
    known = {problem.text for problem in problems}
    diagnosis.findings[:] = [*problems, *(found for found in diagnosis.findings if found.text not in known)]
    folder = (
        Path(options.output_directory).expanduser() if options.output_directory else Path("nerf_data") / source.name
    )
    report = DataReport(source.name, inspection, datasets, diagnosis)
    report.print(console)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        frusta_of(folder / "frusta.png", source.name, inspection, diagnosis, datasets.points)
        contact_sheet_of(folder / "contact_sheet.png", source.name, inspection, diagnosis)
        report.save(folder / "report.json")
    except OSError as error:
        raise StorageError(f"{folder}: can't be written ({error.strerror or error}); set output_directory") from error
    for name in ("frusta.png", "contact_sheet.png", "report.json"):
        console.print(Text(f"  {folder / name}"))
    if words:
        console.print(Text(f"to train on it:\n  {_command_to_train(source, words)}"))
    console.print(Text(f"verdict: {report.verdict}"))
    if diagnosis.faults:
        raise DataError(f"{source.name}: {report.verdict}")


def convert(options: ConvertOptions, source: Source, console: Console) -> None:
    """Write a dataset in another format.

    Raises:
        UserError: the data is at fault, the format can't hold it, or the folder can't be written.
    """
    problems: list[Finding] = []
    datasets = source.datasets(problems)
    bad = [finding for finding in problems if finding.subject == "frames"]
    if bad:
        raise DataError(f"{bad[0].text}; mend it, or remove the frame, before converting")
    folder = Path(os.path.abspath(Path(options.output_directory).expanduser()))
    written = export(datasets, folder, ExportOptions(options.format, options.keep_frame, options.repair))
    for notice in written.notices:
        console.print(Text(f"notice: {notice}"))
    several = f", {len(written.folders)} sequences in a folder each" if len(written.folders) > 1 else ""
    console.print(Text(f"{written.n_frames} frames written as {options.format.name} into {folder}{several}"))
    # Folders of Blender scenes are read together, others one by one.
    first = folder if options.format is ExportFormat.blender else next(iter(written.folders), folder)
    console.print(Text(f"next:\n  {shell_line('nerf_data', ['check', assignment('data_source', str(first))])}"))


def _command_to_train(source: Source, words: Sequence[str]) -> str:
    """The recipe to begin with, a folder for its run, and what reads the data.

    Args:
        words: the overrides that read the data.
    """
    provider = words[0].partition("=")[2]
    recipe = _FIRST_RECIPES.get(provider, "generated_nerf_wce")
    if any(SCENE_SCHEME in word for word in words):
        recipe = "quickstart"
    return shell_line("nerf_runner", ["--config-name", recipe, assignment("exp_dir", f"runs/{source.name}"), *words])


def source_words(source: str) -> list[str]:
    """The overrides of a run's configuration that read what is at a path.

    Raises:
        DataError: its format is not known.
    """
    return recognise(source).words(_PROVIDER)


def _own(config: DictConfig, options: type[Configurable]) -> DictConfig:
    """The command's own keys, interpolations still among all others."""
    names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    own = OmegaConf.masked_copy(config, names)
    own._set_parent(config)
    return own


def _given(word: str) -> str:
    """The value of `data_source=VALUE`: a path as it is, or quoted as Hydra quotes."""
    text = word.partition("=")[2]
    if os.path.exists(os.path.expanduser(text)):
        return text
    try:
        return str(OverridesParser.create().parse_overrides([with_quoted_names(word)])[0].value())
    except OverrideParseException:
        return text


def _settled(verb: str, words: list[str]) -> tuple[list[str], list[str]]:
    """The command line with `data_source=FOLDER` written out, and what that was written out to.

    Raises:
        ConfigError: a folder stands there by itself.
    """
    settled: list[str] = []
    short: list[str] = []
    for previous, word in zip(["", *words], words, strict=False):
        alone = "=" not in word and not word.startswith(("-", "~")) and not previous.startswith("-")
        if alone and ("/" in word or os.path.exists(word)):
            meant = shell_line("nerf_data", [verb, assignment("data_source", word)])
            raise ConfigError(keyed_line("command line", f"{shown(word)} is no override; did you mean {meant}?"))
        if word.startswith("data_source="):
            import nerf_trainer.data  # noqa: F401  (registers the formats)

            short = source_words(_given(word))
            settled += short
        else:
            settled.append(word)
    return settled, short


def main() -> None:
    """The command `nerf_data`."""
    run_verb("nerf_data", _HELP, {"check": _main_check, "convert": _main_convert})


def _console() -> Console:
    """Colours and the width of a terminal there; elsewhere plain text in lines as long as they are."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=200)


def _main_check() -> None:
    sys.argv[1:], short = _settled("check", sys.argv[1:])

    def task(config: DictConfig, _: list[str]) -> None:
        with torch.no_grad():
            check(build(CheckOptions, _own(config, CheckOptions)), Source.of(config), short, _console())

    launch.run_hydra(lambda: NerfDataCheck, task, name="nerf_data check", summary=_CHECK_SUMMARY)


def _main_convert() -> None:
    sys.argv[1:], _ = _settled("convert", sys.argv[1:])

    def task(config: DictConfig, _: list[str]) -> None:
        convert(build(ConvertOptions, _own(config, ConvertOptions)), Source.of(config), _console())

    launch.run_hydra(lambda: NerfDataConvert, task, name="nerf_data convert", summary=_CONVERT_SUMMARY)


if __name__ == "__main__":
    main()
