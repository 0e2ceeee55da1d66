"""The page of recipes for real models, docs/recipes.md."""

from __future__ import annotations

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

Written by `ditstack recipes --write docs/recipes.md`, for one {machine}. These {count} recipes are made for models whose
weights were never loaded here: **nothing was measured on any of them**, neither pictures nor time nor memory.

`ditstack explain RECIPE --size 1024x1024 --assume h100` plans one from its model's published configuration alone (a file in
`stack/reference/published/`, written from public knowledge; `--frames` for videos, `--config FOLDER` for a saved pipeline
without its weights). The model's shapes are real, on torch's meta device: they give the order of the passes, what clashes,
the bytes of weights and of cache state. Work of a call is inferred from three calls of a small instance of the class.

"At most" is Amdahl's law over the share of the multiply-accumulates that the passes touch: 8-bit products for twice as fast,
cached steps for free but for what always runs. It counts nothing that passes cost, and nothing that a compiler saves. State is
that of a whole picture, both guidance branches where a model has two.
"""


def page() -> str:
    """docs/recipes.md: every shipped recipe for a model whose configuration is published."""
    models = published_models()
    machine = assumed_machine(PAGE_MACHINE)
    recipes = [recipe for recipe in list_recipes() if recipe.model in models]
    rows = [row(recipe, unloaded(recipe, models[recipe.model], machine)) for recipe in recipes]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{_INTRODUCTION.format(machine=machine.vector, count=len(rows))}\n{table}\n"


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
