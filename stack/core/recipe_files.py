"""The shipped recipes as files: what a list of them shows, read without building a pass or loading a library."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .files import read_toml

NOTES = "notes"


@dataclass(frozen=True)
class RecipeHead:
    """What a list says of a recipe.

    Attributes:
        model: the model it is for.
        steps: denoiser steps it is for.
        stages: names of its passes, in the order of the file.
    """

    name: str
    description: str
    model: str
    steps: int
    stages: tuple[str, ...]


def shipped() -> dict[str, Path]:
    """The files of the shipped recipes, by name."""
    folder = Path(str(resources.files("stack.recipes")))
    return dict(sorted((path.stem, path) for path in folder.glob("*.toml")))


def heads() -> list[RecipeHead]:
    """What there is to say of every shipped recipe, by name."""
    return [_head(name, read_toml(path, f"recipe {name}")) for name, path in shipped().items()]


def _head(name: str, table: dict[str, Any]) -> RecipeHead:
    stages = tuple(key for key, value in table.items() if isinstance(value, dict) and key != NOTES)
    return RecipeHead(name, table["description"], table["model"], table["steps"], stages)
