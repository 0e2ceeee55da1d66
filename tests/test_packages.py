"""What is installed is what is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed_and_every_folder_of_code_is_one() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    elsewhere = {name for name in settings["package-dir"] if name != "stack"}
    code = {file.parent for file in (ROOT / "stack").rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in code} == {*settings["packages"]} - elsewhere
    assert all((folder / "__init__.py").is_file() for folder in code)
