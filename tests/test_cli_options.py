"""An option of one name means one thing: the same words, the same kind of value, in every command that has it."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from typer.models import OptionInfo

from stack import calibrate, compare, run, tune
from stack.calibration.measuring import calibrate as calibrate_stack
from stack.cli.app import ORDER, app
from stack.cli.options import model_for
from stack.recipe import load_recipe

Run = Callable[..., tuple[int, str, str]]
NAMES = {"compare", "run", "explain", "calibrate", "tune", "models", "recipes", "adapters", "rules"}


def options() -> dict[str, dict[str, tuple[Any, str]]]:
    """Kind of value and help of each option, by its name and by the command that has it."""
    found: dict[str, dict[str, tuple[Any, str]]] = defaultdict(dict)
    for registered in app.registered_commands:
        assert registered.callback is not None
        command = registered.name or registered.callback.__name__
        for name, hint in get_type_hints(registered.callback, include_extras=True).items():
            kind, about = get_args(hint) if get_origin(hint) is Annotated else (None, None)
            if isinstance(about, OptionInfo):
                first = about.default if isinstance(about.default, str) else ""  # typer moves it to the names later
                given = "/".join(filter(None, [first, *(about.param_decls or ())])) or f"--{name.replace('_', '-')}"
                found[given][command] = (frozenset(get_args(kind) or [kind]) - {type(None)}, about.help or "")
    return found


def test_every_command_is_walked() -> None:
    found = options()
    assert {command for commands in found.values() for command in commands} == NAMES
    shared = {name for name, commands in found.items() if len(commands) > 1}
    assert {"--out", "--min-psnr", "--max-seconds", "--budget", "--write", "--compile/--no-compile"} <= shared
    assert found["--out"]["run"] == (frozenset({Path}), "Folder to write to.")


def test_options_of_one_name_have_one_meaning() -> None:
    assert {name: {*commands.values()} for name, commands in options().items() if len({*commands.values()}) > 1} == {}


@pytest.mark.parametrize("old", ["--psnr", "--seconds"])
def test_names_of_before_are_gone(run: Run, old: str) -> None:
    assert old not in options()
    code, _, err = run("calibrate", old, "40")
    assert code == 2 and f"No such option: {old}" in err


def test_keywords_are_the_options() -> None:
    """What a function and its command share has one name."""
    keywords = {name: {*inspect.signature(one).parameters} for name, one in FUNCTIONS.items()}
    assert "min_psnr" in keywords["calibrate"] & keywords["tune"] & keywords["Stack.calibrate"]
    assert "max_seconds" in keywords["calibrate"] & keywords["tune"] & keywords["Stack.calibrate"]
    shared = {"prompts", "seed", "size", "frames", "guidance", "negative_prompt", "call"}
    for name in ("compare", "run", "calibrate", "tune"):
        assert shared <= keywords[name], name
        taken = {one.removeprefix("--").replace("-", "_") for one, commands in options().items() if name in commands}
        assert shared <= taken


FUNCTIONS: dict[str, Any] = {
    "compare": compare, "run": run, "calibrate": calibrate, "tune": tune, "Stack.calibrate": calibrate_stack,
}  # fmt: skip


def test_the_help_lists_commands_as_one_meets_them(run: Run) -> None:
    assert {*ORDER} == NAMES
    told = run("--help")[1]
    places = [re.search(rf"^. {name} ", told, re.MULTILINE) for name in ORDER]
    assert all(places) and [place.start() for place in places if place] == sorted(p.start() for p in places if p)


def test_every_command_prints_json() -> None:
    assert {*options()["--json"]} == NAMES


def test_the_model_is_the_recipes_own_unless_another_is_asked_for() -> None:
    small, large, real = (load_recipe(name) for name in ("fast", "fast-128", "flux-dev"))
    assert model_for(None, [large]) == "shapes-flux-128" and model_for(None, [real]) == "black-forest-labs/FLUX.1-dev"
    assert model_for("mine", [large]) == "mine"
    assert model_for(None, []) == model_for(None, [small, large]) == "shapes-flux"
