"""What is installed is what is there."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import stack
from stack.core.errors import StackError
from stack.runtime.report import Report
from stack.stack import Stack

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed_and_every_folder_of_code_is_one() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    elsewhere = {name for name in settings["package-dir"] if name != "stack"}
    code = {file.parent for file in (ROOT / "stack").rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in code} == {*settings["packages"]} - elsewhere
    assert all((folder / "__init__.py").is_file() for folder in code)


def test_one_version_everywhere() -> None:
    """The package, its metadata, how it is cited and the newest entry of the changelog."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {project["version"], cited["version"], changes[0]} == {stack.__version__}
    assert cited["license"] == project["license"]


def test_it_is_cited_with_the_date_and_the_address_that_it_is_installed_from() -> None:
    """No date before there is a release."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    title = re.search(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert title is not None
    dated = re.search(r"\d{4}-\d{2}-\d{2}", title[0])
    assert str(cited.get("date-released", "")) == (dated[0] if dated else "")
    installed = re.search(r"git\+(https://[^\s\"]+)", (ROOT / "README.md").read_text())
    assert installed is not None and cited["repository-code"] == installed[1]


def names_from_stack(folder: str) -> list[tuple[Path, str, str]]:
    """(file, module, name) of all that the code of a folder imports from the library."""
    return [
        (path, node.module, alias.name)
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stack" and node.module
        for alias in node.names
    ]


@pytest.mark.parametrize("folder", ["benchmarks", "training"])
def test_what_is_imported_from_the_library_is_there(folder: str) -> None:
    names = names_from_stack(folder)
    assert len(names) > 20
    modules = {module: importlib.import_module(module) for _, module, _ in names}
    missing = [(path.name, f"{module}.{name}") for path, module, name in names if name not in dir(modules[module])]
    assert [one for one in missing if importlib.util.find_spec(one[1]) is None] == []


def imported_by(code: str) -> set[str]:
    """Which of the slow libraries a new interpreter has after running this."""
    told = f"{code}\nimport sys\nprint(*({{'torch', 'diffusers', 'transformers'}} & {{*sys.modules}}))"
    return {*subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout.split()}


def test_help_and_the_list_of_adapters_wait_for_no_library() -> None:
    assert imported_by("import stack.cli") == set()
    assert imported_by("from stack.distill.find import cards_in, shipped_folder; cards_in(shipped_folder())") == set()
    assert "diffusers" in imported_by("from stack import Stack"), "the check can fail"


def test_names_of_the_package_are_found_when_asked_for() -> None:
    assert (stack.Stack, stack.Report, stack.StackError) == (Stack, Report, StackError)
    assert {*stack.__all__} <= {*dir(stack)}
    with pytest.raises(AttributeError, match="'stack' has no attribute 'Stacks'"):
        _ = stack.Stacks
