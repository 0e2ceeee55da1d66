"""Prebuilt stacks: TOML files, shipped or the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .core.errors import StackError, choose
from .core.files import read_toml, toml_text
from .core.passes import ORDER, Pass
from .core.recipe_files import shipped
from .core.validate import RunSteps, check_fields, check_table, checked, shown
from .passes import PASSES, make_pass

HEAD = ("name", "description", "model", "steps", "notes")


@dataclass(frozen=True)
class Recipe:
    """A stack as data.

    Attributes:
        model: the model it was tuned on.
        steps: denoiser steps it was tuned for; None for those that a pipeline takes by itself.
        stages: stage name to the pass's arguments, in running order.
        notes: how its calibration was measured; shown, never interpreted.
        folder: where the files are that its options name; the file's own.
        file: what errors call it; "" for its name.
    """

    name: str
    description: str = ""
    model: str = "shapes-flux"
    steps: RunSteps | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)
    file: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_fields(self, f"recipe {self.file or self.name}")

    def passes(self, stages: Iterable[str] | None = None) -> list[Pass]:
        """The passes, or those of some stages only.

        Raises:
            StackError: the recipe has no such stage.
        """
        given = self.stages if stages is None else stages
        wanted = checked(tuple[str, ...], given if isinstance(given, str) else tuple(given), "stages")
        for stage in wanted:
            if stage not in self.stages:
                raise choose(f"stage of recipe {self.file or self.name}", stage, list(self.stages))
        return [make_pass(s, self.stages[s], self.file or self.name, self.folder) for s in self.stages if s in wanted]


def list_recipes() -> list[Recipe]:
    """The shipped recipes, by name."""
    return [load_recipe(name) for name in shipped()]


def load_recipe(name: str) -> Recipe:
    """Read a shipped recipe by name, or a recipe file.

    Raises:
        StackError: no such recipe, or a file that is none.
    """
    files = shipped()
    checked(str, name, "recipe")
    source = files.get(name) or (Path(name) if name.endswith(".toml") else None)
    if source is None:
        like = get_close_matches(name, files, 1)
        hint = f"; did you mean {like[0]!r}?" if like else ""
        known = ", ".join(files)
        raise StackError(f"unknown recipe {shown(name)}: expected one of {known} or the path of a .toml file{hint}")
    path = Path(str(source))
    data = read_toml(path, f"recipe {name}")
    return parse_recipe(data, path.stem, path.parent, name)


def recipe_of(given: Recipe | str | Path) -> Recipe:
    """A recipe as it is, or the one that is shipped under this name or lies in this .toml file; see `load_recipe`."""
    if isinstance(given, Recipe):
        return given
    if not isinstance(given, (str, Path)):
        raise StackError(f"recipe: expected a Recipe, a shipped name or the path of a .toml file, got {shown(given)}")
    return load_recipe(str(given))


def parse_recipe(data: dict[str, Any], name: str, folder: Path | None = None, file: str = "") -> Recipe:
    """Check a recipe's table and make it a `Recipe`. Every pass is built once, so that a bad value is found here.

    Args:
        file: what errors call it; its name by default.

    Raises:
        StackError: an unknown entry, stage or option, or a value of another type or outside its range.
    """
    where = f"recipe {file or name}"
    head = {key: value for key, value in data.items() if key not in PASSES}
    stages = {stage: checked(dict[str, Any], data[stage], f"{where}: {stage}") for stage in ORDER if stage in data}
    for key, value in head.items():
        if key not in HEAD:
            kind = "stage" if isinstance(value, (dict, list)) else "entry"
            raise choose(f"{kind} in {where}", key, list(PASSES) if kind == "stage" else [*HEAD, *PASSES])
    given = {"name": name, **check_table(Recipe, head, f"{where}: ")}
    recipe = Recipe(**given, stages=stages, folder=folder, file=file or name)
    recipe.passes()
    return recipe


def as_toml(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a pass as a file gives them back: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as a file that `load_recipe` reads back to an equal recipe.

    Raises:
        StackError: it holds something that TOML has no word for.
    """
    steps = {"steps": recipe.steps} if recipe.steps else {}
    head = {"name": recipe.name, "description": recipe.description, "model": recipe.model, **steps}
    notes = {"notes": recipe.notes} if recipe.notes else {}
    return toml_text({**head, **recipe.stages, **notes}, f"recipe {recipe.name}")
