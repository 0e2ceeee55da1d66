"""A recipe calibrated on a model: searched, checked on prompts it has not seen, and written back as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .calibrate.calibration import Calibration
from .calibrate.goals import Goal
from .core.errors import StackError
from .recipe import Recipe
from .runtime.pipeline_calls import Call, listed
from .stack import Stack

HELD_OUT = 3  # every third prompt is kept for the check


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one per line; empty lines are left out.

    Raises:
        StackError: no such file.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StackError(f"cannot read prompts from {path}: expected a text file, one per line ({error})") from None
    return [line.strip() for line in lines if line.strip()]


def held_apart(prompts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Prompts to search on, and every third one to check on.

    Raises:
        StackError: fewer than three different prompts.
    """
    known = list(dict.fromkeys(listed(prompts)))
    if len(known) < HELD_OUT:
        raise StackError(
            f"expected at least {HELD_OUT} different prompts, 2 to search on and 1 to check, got {len(known)}"
        )
    held = known[HELD_OUT - 1 :: HELD_OUT]
    return [prompt for prompt in known if prompt not in held], held


def calibrated(
    recipe: Recipe,
    pipe: Any,
    prompts: Sequence[Any],
    goal: Goal,
    seed: int = 0,
    budget: float = 60.0,
    progress: bool = True,
    call: Call | None = None,
) -> tuple[Recipe, Calibration]:
    """The recipe with the schedule and the forecast that its own stack wants on this model, which is left as it was.

    Args:
        prompts: three or more; see `held_apart`.
        progress, call: see `stack.calibrate.measuring`.

    Raises:
        StackError: see `Stack.calibrate`.
    """
    search, held = held_apart(prompts)
    stack = Stack.from_recipe(recipe, pipe)
    try:
        result = stack.calibrate(search, held, **vars(goal), seed=seed, budget=budget, progress=progress, call=call)
    finally:
        stack.undo()
    # As TOML has them, so that the recipe equals the one that is read back.
    measured = {
        name: list(value) if isinstance(value, tuple) else value for name, value in result.cache.measured.items()
    }
    options = {**recipe.stages["cache"], **measured}
    notes = {
        "calibrated_on": len(search),
        "held_out": len(held),
        "psnr_db": round(result.psnr_db, 1),
        **({"held_out_psnr_db": round(result.held_out_psnr_db, 1)} if result.checked else {}),
        "start_psnr_db": round(result.start_psnr_db, 1),
        "trials": result.trials,
    }
    return replace(recipe, stages={**recipe.stages, "cache": options}, notes=notes), result
