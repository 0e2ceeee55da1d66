"""Prebuilt stacks: TOML files, shipped or the user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from .core.errors import StackError, choose
from .core.passes import ORDER, Pass
from .passes import PASSES, make_pass


@dataclass(frozen=True)
class Recipe:
    """A stack as data.

    Attributes:
        model: the model it was tuned on.
        steps: denoiser steps it was tuned for.
        stages: stage name to the pass's arguments, in running order.
        notes: how its calibration was measured; shown, never interpreted.
        folder: where the files are that its options name; the file's own.
    """

    name: str
    description: str
    model: str
    steps: int
    stages: dict[str, dict[str, Any]]
    notes: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)

    def passes(self, stages: Iterable[str] | None = None) -> list[Pass]:
        """The passes, or those of some stages only."""
        wanted = list(self.stages) if stages is None else list(stages)
        return [make_pass(s, self.stages[s], self.name, self.folder) for s in self.stages if s in wanted]


def _shipped() -> dict[str, Any]:
    folder = resources.files("stack.recipes")
    return {f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")}


def list_recipes() -> list[Recipe]:
    """The shipped recipes, by name."""
    return [load_recipe(name) for name in sorted(_shipped())]


def load_recipe(name: str) -> Recipe:
    """Read a shipped recipe by name, or a recipe file.

    Raises:
        StackError: no such recipe, or a file that is none.
    """
    shipped = _shipped()
    source = shipped.get(name) or (Path(name) if name.endswith(".toml") and Path(name).is_file() else None)
    if source is None:
        raise StackError(
            f"unknown recipe {name!r}: expected one of {', '.join(sorted(shipped))} or the path of a .toml file"
        )
    try:
        data = tomllib.loads(source.read_text())
    except tomllib.TOMLDecodeError as error:
        raise StackError(f"recipe {name} is not valid TOML: {error}") from None
    return parse_recipe(data, Path(name).stem, Path(str(source)).parent)


def parse_recipe(data: dict[str, Any], name: str, folder: Path | None = None) -> Recipe:
    """Check a recipe's table and make it a `Recipe`. Every pass is built once, so that a bad value is found here."""
    plain = {key: data[key] for key in data if not isinstance(data[key], dict)}
    tables = {key: dict(data[key]) for key in data if isinstance(data[key], dict)}
    notes = tables.pop("notes", {})
    for key in plain:
        if key not in ("name", "description", "model", "steps"):
            raise choose(f"entry in recipe {name}", key, ["name", "description", "model", "steps", "notes", *ORDER])
    for stage in tables:
        if stage not in PASSES:
            raise choose(f"stage in recipe {name}", stage, list(PASSES))
    recipe = Recipe(
        name=plain.get("name", name),
        description=plain.get("description", ""),
        model=plain.get("model", "shapes-flux"),
        steps=plain.get("steps", 50),
        stages={stage: tables[stage] for stage in ORDER if stage in tables},
        notes=notes,
        folder=folder,
    )
    recipe.passes()
    return recipe


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as a file that `load_recipe` reads back to an equal recipe."""
    head = {"name": recipe.name, "description": recipe.description, "model": recipe.model, "steps": recipe.steps}
    blocks = [_table(head)]
    blocks += [f"[{stage}]\n{_table(options)}" for stage, options in recipe.stages.items()]
    if recipe.notes:
        blocks.append(f"[notes]\n{_table(recipe.notes)}")
    return "\n\n".join(blocks) + "\n"


def _table(values: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return repr(value)
