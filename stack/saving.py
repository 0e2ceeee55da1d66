"""A quantized stack in a folder: the rounded weights, the passes above them, the sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .core.errors import StackError
from .models.denoiser import denoiser_of
from .quant.saved import load_denoiser, save_denoiser
from .recipe import Recipe, load_recipe, recipe_toml
from .runtime.stack_like import StackLike

RECIPE, SCHEDULER = "recipe.toml", "scheduler"


def save_stack(stack: StackLike, folder: str | Path) -> int:
    """Write an applied stack; see `Stack.save`."""
    folder = Path(folder)
    if not stack.applied:
        raise StackError("save() writes an applied stack: call apply() first")
    count = save_denoiser(stack.denoiser, folder)
    # What the weights hold already is not done again: adapters are fused, linears rounded.
    added = [p for p in stack.plan.passes() if p.stage in stack.plan.added]
    above = {p.stage: p.options() for p in (*stack.passes, *added) if p.stage not in ("distill", "quantize")}
    recipe = Recipe(folder.name, "", stack.facts.family, stack.plan.facts_after.steps, above)
    (folder / RECIPE).write_text(recipe_toml(recipe))
    if stack.pipe is not None:
        stack.pipe.scheduler.save_pretrained(folder / SCHEDULER)
    return count


def load_weights(folder: str | Path, model: Any) -> Recipe:
    """Give a model the saved weights; returns the recipe of the passes above them. See `Stack.load`."""
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        raise StackError(f"expected a folder written by Stack.save(), but {folder} has no {RECIPE}")
    recipe = load_recipe(str(folder / RECIPE))
    bare = isinstance(model, nn.Module)
    load_denoiser(model if bare else denoiser_of(model), folder)
    if not bare and (folder / SCHEDULER).is_dir():
        model.scheduler = type(model.scheduler).from_pretrained(folder / SCHEDULER)
    return recipe
