"""`ditstack calibrate` as a function: a recipe and a pipeline in, the recipe with what was found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..attention.sparse_attn import SparseAttention
from ..calibration.calibration import Calibration
from ..calibration.goals import Goal
from ..comparison.compare import taken_off
from ..core.errors import StackError
from ..recipe import Recipe, as_toml, recipe_of
from ..reference.prompts import Prompts, searched_prompts
from ..runtime.call_arguments import Call, call_of
from ..runtime.pipeline_calls import pipeline_for
from ..stack import Stack

HELD_OUT = 3  # every third prompt is kept for the check
FITTED_ON = 2  # prompts that a budget of sparse attention is measured on


def held_apart(prompts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Prompts to search on, and every third one to check on.

    Raises:
        StackError: fewer than three different prompts.
    """
    known = list(dict.fromkeys(prompts))
    if len(known) < HELD_OUT:
        raise StackError(
            f"expected at least {HELD_OUT} different prompts, 2 to search on and 1 to check, got {len(known)}"
        )
    held = known[HELD_OUT - 1 :: HELD_OUT]
    return [prompt for prompt in known if prompt not in held], held


def calibrate(
    model: Any,
    recipe: Recipe | str | Path | None = None,
    *,
    prompts: Prompts,
    full_steps: int = 0,
    min_psnr: float = 0.0,
    max_seconds: float = 0.0,
    seed: int = 0,
    budget: float = 60.0,
    size: str | None = None,
    frames: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    call: Call | None = None,
    progress: bool = True,
) -> tuple[Recipe, Calibration]:
    """Search where a recipe's cache should run full steps on this model, and return the recipe with the result.

    The model is left as it was. If the sparse attention has a budget, its shares of blocks are measured first and
    written too.

    Args:
        model: a pipeline, or a `Stack` on one, which is taken off meanwhile.
        recipe: see `stack.recipe.recipe_of`; by default the stack's own.
        prompts: three or more, the path of a file of them, or how many captions of a reference model; see
            `stack.reference.prompts.searched_prompts`. Every third is held out.
        full_steps, min_psnr, max_seconds: what to reach, see `stack.calibration.goals.Goal`.
        budget: seconds to spend.
        size, frames, guidance, negative_prompt, call: see `stack.runtime.call_arguments.call_of`.

    Raises:
        StackError: see `Stack.calibrate`.
    """
    pipe = pipeline_for("calibrate()", model.pipe if isinstance(model, Stack) else model)
    if recipe is None and not isinstance(model, Stack):
        raise StackError("calibrate() searches a recipe's settings: expected a recipe, or a Stack as its model")
    chosen = model.to_recipe() if recipe is None else recipe_of(recipe)
    goal = Goal(full_steps, min_psnr, max_seconds)
    search, held = held_apart(searched_prompts(pipe, prompts))
    given = call_of(pipe, size, frames, guidance, negative_prompt, call)
    with taken_off(model):
        return _searched(chosen, pipe, search, held, goal, seed, budget, progress, given)


def _searched(
    recipe: Recipe, pipe: Any, search: list[Any], held: list[Any], goal: Goal, seed: int, budget: float,
    progress: bool, call: Call,
) -> tuple[Recipe, Calibration]:  # fmt: skip
    stack = Stack.from_recipe(recipe, pipe)
    try:
        # Learned corrections would be a second file, which a recipe alone cannot hold.
        if any(isinstance(p, SparseAttention) and p.policy.budget for p in stack.passes):
            stack.fit_shares(search[:FITTED_ON], seed, progress, call)
        asked: dict[str, Any] = {"budget": budget, "progress": progress, "call": call, "learn": "off"}
        result = stack.calibrate(search, held, **vars(goal), seed=seed, **asked)
    finally:
        stack.undo()
    # As TOML has them, so that the recipe equals the one that is read back.
    options = {"cache": {**recipe.stages["cache"], **as_toml(result.cache.measured)}}
    options |= {p.stage: as_toml(p.options()) for p in stack.passes if isinstance(p, SparseAttention) and p.layers}
    notes = {
        "calibrated_on": len(search),
        "held_out": len(held),
        "psnr_db": round(result.psnr_db, 1),
        **({"held_out_psnr_db": round(result.held_out_psnr_db, 1)} if result.checked else {}),
        "start_psnr_db": round(result.start_psnr_db, 1),
        "trials": result.trials,
    }
    return replace(recipe, stages={**recipe.stages, **options}, notes=notes), result
