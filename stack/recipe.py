"""Prebuilt stacks: TOML files, shipped or the user's own."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .builder import Stack
from .caching.policy import PRESETS
from .errors import StackError, choose
from .passes.adapter import Adapter
from .passes.base import ORDER, Pass
from .passes.cache import FILES, Cache
from .passes.cache import OPTIONS as CACHE_OPTIONS
from .passes.compile import Compile
from .passes.distill import Distill
from .passes.quantize import Quantize
from .passes.sparse_attn import SparseAttention

PASSES: dict[str, type[Any]] = {p.stage: p for p in (Distill, Quantize, Adapter, SparseAttention, Compile, Cache)}


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

    def stack(self, model: Any, stages: Iterable[str] | None = None, steps: int | None = None) -> Stack:
        """A stack of the recipe's passes (or of some stages only) over a model; nothing is applied yet."""
        stack = Stack(model, steps=steps or self.steps)
        for each in self.passes(stages):
            stack.add(each)
        return stack


def make_pass(stage: str, options: dict[str, Any], where: str, folder: Path | None = None) -> Pass:
    """A pass from its stage's name and its arguments; maps and adapters are looked for in `folder` first.

    Raises:
        StackError: an unknown stage or argument, or a value the pass refuses; the message names the recipe.
    """
    if stage not in PASSES:
        raise choose(f"stage in recipe {where}", stage, list(PASSES))
    known = options_of(stage)
    for name in options:
        if name not in known:
            raise choose(f"option of [{stage}] in recipe {where}", name, known)
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    for name in FILES if folder is not None else ():
        if isinstance(plain.get(name), str):
            plain[name] = folder / plain[name]
    adapter = plain.get("adapter")
    if folder is not None and isinstance(adapter, str) and (folder / adapter).is_file():
        plain["adapter"] = str(folder / adapter)
    try:
        return PASSES[stage](**plain)
    except TypeError as error:
        raise StackError(f"recipe {where}, [{stage}]: {error}") from None
    except StackError as error:
        raise StackError(f"recipe {where}, [{stage}]: {error}") from None


def pass_options(made: Pass) -> dict[str, Any]:
    """The arguments that make an equal pass, those at their defaults left out.

    Raises:
        StackError: the pass holds linear maps, which a recipe can only name the file of, or a calibrated mix.
    """
    if isinstance(made, Quantize) and made.prepared is not None:
        raise StackError("a recipe cannot hold a calibrated mix of schemes: name max_error or max_bytes, and measure")
    if isinstance(made, Cache):
        if made.policy.maps is not None:
            raise StackError("a recipe cannot hold FastCache's maps: write them with fit_maps(save=...), name the file")
        preset = PRESETS[made.method]
        own = {name: getattr(made.policy, name) for name in CACHE_OPTIONS}
        return {"method": made.method, **{n: v for n, v in own.items() if v != getattr(preset, n)}}
    assert is_dataclass(made)
    return {f.name: getattr(made, f.name) for f in fields(made) if getattr(made, f.name) != f.default}


def options_of(stage: str) -> list[str]:
    """Names of a pass's arguments."""
    if stage == Cache.stage:
        return ["method", "max_error", *CACHE_OPTIONS]
    return list(inspect.signature(PASSES[stage]).parameters)


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
