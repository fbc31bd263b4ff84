"""Where the shipped recipes are, and their names."""

from collections.abc import Iterable
from pathlib import Path

DEFAULT_CONFIG = "default_config"
"""Name under which the schema stands in `defaults` lists."""


def configs_folder() -> Path:
    """The folder of the shipped recipes: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def recipe_names(folders: Iterable[Path] = ()) -> list[str]:
    """The configurations of the shipped recipes and of other folders, and the schema's, in order."""
    found = {path.stem for folder in (*folders, configs_folder()) for path in folder.glob("*.yaml")}
    return sorted(found | {DEFAULT_CONFIG})
