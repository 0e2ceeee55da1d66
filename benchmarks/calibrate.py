"""Calibrate a recipe's cache on the stack it belongs to, and write the recipe back with the schedule it found.

python benchmarks/calibrate.py balanced --full-steps 11
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stack.models.load import load_pipeline
from stack.passes.cache import Cache
from stack.recipe import load_recipe, recipe_toml

PROMPTS = (
    "a green star above a purple square",
    "a yellow ring in the left on a navy background",
    "a cyan circle left of a red triangle on a white background",
)
HELD_OUT = (
    "a purple triangle in the bottom",
    "a blue ring above a yellow star on a grey background",
    "a red square left of a green circle",
)


def main(
    recipe: str,
    full_steps: Annotated[int, typer.Option(min=2)] = 11,
    trials: Annotated[int, typer.Option(min=1)] = 80,
    out: Path = Path("recipes"),
) -> None:
    """Search, check on held-out prompts, print what was found, and write `out/NAME.toml`."""
    found = load_recipe(recipe)
    stack = found.stack(load_pipeline(found.model))
    result = stack.calibrate(PROMPTS, HELD_OUT, full_steps=full_steps, trials=trials)
    Console().print(str(result))
    cache = next(p for p in stack.passes if isinstance(p, Cache))
    options = {**found.stages["cache"], **cache.measured}
    notes = {
        "calibrated_on": len(PROMPTS),
        "psnr_db": round(result.psnr_db, 1),
        "held_out_psnr_db": round(result.held_out_psnr_db, 1),
        "uniform_psnr_db": round(result.uniform_psnr_db, 1),
        "trials": result.trials,
    }
    written = replace(found, stages={**found.stages, "cache": options}, notes=notes)
    (out / f"{found.name}.toml").write_text(recipe_toml(written))


if __name__ == "__main__":
    typer.run(main)
