"""The page of recipes for real models, docs/recipes.md."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.facts import assumed_machine
from ..recipe import Recipe, list_recipes
from .published import published_models
from .unloaded import Unloaded, savings, unloaded
from .unloaded_words import gigabytes

PAGE_MACHINE = "h100"
COLUMNS = (
    "recipe", "base model", "steps", "passes", "size", "weights", "state per picture", "at most", "measured on it",
)  # fmt: skip
_INTRODUCTION = """# Recipes for real models

Written by `ditstack recipes --write docs/recipes.md`, for one {machine}. These {count} recipes are for models whose
weights were not available: **nothing was measured on any of them**, neither pictures nor time nor memory.

`ditstack explain RECIPE --size 1024x1024 --assume h100` plans one without weights, from the published configuration of
its model (`stack/reference/published/`). `--frames` sets the length of a video; `--config FOLDER` takes the
configuration of a saved pipeline, with or without its weights. The plan has the order of the passes, what
clashes, and the bytes of weights and of cache state.

"At most" is the largest possible speedup by Amdahl's law: 8-bit products count as twice as fast, cached steps as free
except for what always runs. The cost of the passes and the gain from compilation are not counted. State is that of a
whole picture, with both guidance branches where a model has two.
"""


Plans = Sequence[tuple[Recipe, Unloaded]]


def plans() -> Plans:
    """Every shipped recipe for a model whose configuration is published, and its plan."""
    models, machine = published_models(), assumed_machine(PAGE_MACHINE)
    recipes = [recipe for recipe in list_recipes() if recipe.model in models]
    return [(recipe, unloaded(recipe, models[recipe.model], machine)) for recipe in recipes]


def page(planned: Plans) -> str:
    """docs/recipes.md."""
    rows = [row(recipe, found) for recipe, found in planned]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    machine = assumed_machine(PAGE_MACHINE).vector
    return f"{_INTRODUCTION.format(machine=machine, count=len(rows))}\n{table}\n"


def row(recipe: Recipe, found: Unloaded) -> tuple[str, ...]:
    """One recipe, in the order of `COLUMNS`."""
    model, most = found.model, savings(found)
    width, height = model.size
    size = f"{width}x{height}{f', {model.frames} frames' if model.frames else ''}"
    before, after = gigabytes(found.bytes_before), gigabytes(found.bytes_after)
    state = gigabytes(found.state_bytes) if found.state else "none"
    bound = f"{most.together:.1f}x" if most.alone else "not known ahead"
    steps = str(found.plan.facts_after.steps)
    passes = ", ".join(p.stage for p in found.plan.passes())
    return recipe.name, model.repo, steps, passes, size, f"{before} to {after}", state, bound, "nothing"
