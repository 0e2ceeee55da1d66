"""A recipe calibrated on a model: searched, checked on prompts it has not seen, and written back as data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .attention.sparse_attn import SparseAttention
from .calibration.calibration import Calibration
from .calibration.goals import Goal
from .core.errors import StackError
from .core.files import read_text
from .core.validate import prompts_of, shown
from .recipe import Recipe, as_toml, recipe_of
from .runtime.call_arguments import Call, call_of
from .runtime.pipeline_calls import pipeline_for
from .stack import Stack

MOST_PROMPTS, LONGEST_PROMPT = 1000, 10_000
HELD_OUT = 3  # every third prompt is kept for the check
FITTED_ON = 2  # prompts that a budget of sparse attention is measured on


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one per line; empty lines are left out.

    Raises:
        StackError: no such file, no text, or more or longer prompts than a file may have.
    """
    lines = read_text(path, f"cannot read prompts from {path}").splitlines()
    found = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(found, 1):
        if len(line) > LONGEST_PROMPT or not line.isprintable():
            expected = f"expected printable text of at most {LONGEST_PROMPT} letters"
            raise StackError(f"{path}: prompt {number}: {expected}, got {shown(line)}")
    if len(found) > MOST_PROMPTS:
        raise StackError(f"{path}: expected at most {MOST_PROMPTS} prompts, got {len(found)}")
    return found


def texts_from(prompts: str | Path | Sequence[Any]) -> list[Any]:
    """Prompts as they are given, or the lines of the file that a `Path` names.

    Raises:
        StackError: no such file, no prompts, or the name of a file as a text, which would be drawn.
    """
    if isinstance(prompts, Path):
        return read_prompts(prompts)
    if isinstance(prompts, str) and os.path.isfile(prompts):
        raise StackError(
            f"prompts: {shown(prompts)} is a file: expected its Path for its lines, or a list for this text"
        )
    return prompts_of(prompts)


def held_apart(prompts: str | Path | Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Prompts to search on, and every third one to check on.

    Raises:
        StackError: fewer than three different prompts; see `texts_from`.
    """
    if isinstance(prompts, int):
        raise StackError(f"prompts: expected at least {HELD_OUT} texts, or the path of a file, got a number, {prompts}")
    known = list(dict.fromkeys(texts_from(prompts)))
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
    prompts: str | Path | Sequence[Any],
    full_steps: int = 0,
    psnr: float = 0.0,
    seconds: float = 0.0,
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
        model: a pipeline, or a `Stack` on one that is not applied.
        recipe: see `stack.recipe.recipe_of`; by default the stack's own.
        prompts: three or more, or the path of a file of them; see `held_apart`.
        full_steps, psnr, seconds: what to reach, see `stack.calibration.goals.Goal`.
        budget: seconds to spend.
        size, frames, guidance, negative_prompt, call: see `stack.runtime.call_arguments.call_of`.

    Raises:
        StackError: see `Stack.calibrate`.
    """
    pipe = pipeline_for("calibrate()", model.pipe if isinstance(model, Stack) else model)
    if recipe is None and not isinstance(model, Stack):
        raise StackError("calibrate() searches a recipe's settings: expected a recipe, or a Stack as its model")
    chosen = model.to_recipe() if recipe is None else recipe_of(recipe)
    goal = Goal(full_steps, psnr, seconds)
    search, held = held_apart(prompts)
    return _searched(
        chosen,
        pipe,
        search,
        held,
        goal,
        seed,
        budget,
        progress,
        call_of(pipe, size, frames, guidance, negative_prompt, call),
    )


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
