"""Lists, `--json`, `--version`, help and slips of the keyboard."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch

from stack import __version__
from stack.cli.words import wrapped
from stack.core.recipe_files import heads
from stack.recipe import list_recipes, load_recipe, recipe_toml

Run = Callable[..., tuple[int, str, str]]
PAGES = {"recipes": "recipes.md", "adapters": "adapters.md", "rules": "composability.md"}


@pytest.mark.parametrize(
    ("command", "key", "one"),
    [
        ("models", "name", "shapes-flux"), ("recipes", "name", "fast"), ("adapters", "adapter", "flux-turbo-alpha"),
        ("rules", "name", "few-steps"),
    ],
)  # fmt: skip
def test_a_list_as_json_has_what_the_list_has(run: Run, command: str, key: str, one: str) -> None:
    code, out, _ = run(command, "--json")
    names = [entry[key] for entry in json.loads(out)]
    assert code == 0 and one in names
    told = run(command)[1]
    assert all(name in told for name in names)


def test_one_recipe_is_shown_as_its_file_would_be(run: Run) -> None:
    fast = load_recipe("fast")
    assert run("recipes", "fast")[1] == recipe_toml(fast) + "\n"
    shown = json.loads(run("recipes", "fast", "--json")[1])
    assert shown["solver"] == fast.stages["solver"] and shown["steps"] == 50
    code, _, err = run("recipes", "fsat")
    assert code == 2 and "did you mean 'fast'?" in err


def test_one_adapter_is_shown_as_its_card(run: Run) -> None:
    code, out, _ = run("adapters", "flux-turbo-alpha")
    assert code == 0 and "steps = 8" in out
    assert json.loads(run("adapters", "flux-turbo-alpha", "--json")[1])["steps"] == "8"
    code, _, err = run("adapters", "flux-turbo-alph")
    assert code == 2 and "did you mean 'flux-turbo-alpha'?" in err


def test_heads_say_what_the_recipes_say() -> None:
    assert [(head.name, head.description, head.model, head.steps, head.stages) for head in heads()] == [
        (recipe.name, recipe.description, recipe.model, recipe.steps, tuple(recipe.stages)) for recipe in list_recipes()
    ]


def test_version_and_help(run: Run) -> None:
    status, told, errors = run("--version")
    assert (status, told.splitlines()[0], errors) == (0, f"ditstack {__version__}", "")
    assert f"torch {torch.__version__}, diffusers {diffusers.__version__}" in told
    assert run("-h") == run("--help") and "compare" in run("-h")[1]
    assert "--prompts-file" in run("compare", "-h")[1]


def test_versions_as_json(run: Run) -> None:
    for line in (["--version", "--json"], ["--json", "--version"]):
        code, out, err = run(*line)
        found = json.loads(out)
        assert (code, err, found["version"], found["torch"]) == (0, "", __version__, torch.__version__)
    told = run("--version")[1]
    assert all(f"{name} {version}" in told for name, version in found.items() if name != "version")
    for line in (["--json"], ["--json", "models"]):
        code, out, err = run(*line)
        assert (code, out) == (2, "") and "--json goes behind the command" in err


@pytest.mark.parametrize("command", ["recipes", "adapters", "rules"])
def test_a_page_that_is_written_is_told_as_json(run: Run, command: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    if command == "adapters":
        path.write_text((Path(__file__).parents[1] / "docs" / "adapters.md").read_text())
    code, out, err = run(command, "--write", path, "--json")
    assert (code, json.loads(out)) == (0, {"written": str(path)}), err
    assert path.read_text() == (Path(__file__).parents[1] / "docs" / PAGES[command]).read_text()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["compare", "--stesp", "3"], "--steps"),
        (["recipies"], "Did you mean 'recipes'?"),
        (["run", "--prmpt", "x"], "--prompt"),
    ],
)
def test_a_slip_of_the_keyboard_is_told_what_was_meant(run: Run, line: list[str], expected: str) -> None:
    code, out, err = run(*line)
    assert (code, out) == (2, "") and expected in err


def test_a_plan_as_json(run: Run) -> None:
    code, out, _ = run("explain", "flux-dev", "--assume", "h100", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["model"] == "black-forest-labs/FLUX.1-dev" and plan["steps"] == 28
    assert [entry["stage"] for entry in plan["passes"]] == ["quantize", "compile", "cache"]
    assert any(finding["rule"] for finding in plan["findings"])


def test_long_lines_are_wrapped_to_the_terminal() -> None:
    text = "   - " + "word " * 30
    lines = wrapped(text, 40).split("\n")
    assert max(map(len, lines)) <= 40 and " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert lines[0].startswith("   - ") and all(line.startswith(" " * 7) for line in lines[1:])
    assert wrapped("short", 40) == "short"


@pytest.mark.parametrize("command", ["models", "recipes", "adapters", "rules", "--help"])
def test_lists_load_no_library_of_models(command: str) -> None:
    """What makes them quick: without these, a list is under a second of CPU."""
    code = (
        "import sys\nfrom stack.cli import main\n"
        f"try: main([{command!r}])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'matplotlib'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
