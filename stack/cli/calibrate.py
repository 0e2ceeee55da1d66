"""`ditstack calibrate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.files import check_file, write_text
from ..core.validate import MOST_STEPS
from .app import Interrupted, app
from .options import (
    DEFAULT_MODEL,
    DEFAULT_RECIPE,
    LONGEST_RUN,
    CallOption,
    DeviceOption,
    FramesOption,
    GuidanceOption,
    JsonOption,
    LoraOption,
    ModelOption,
    NegativeOption,
    PromptOption,
    PromptsFileOption,
    PromptsOption,
    RecipeArgument,
    SeedOption,
    SizeOption,
    call_of_json,
    check_numbers,
    loaded,
    own_prompts,
    readable,
    recipes_of,
    texts_of,
    told_as,
    within,
)

if TYPE_CHECKING:
    from ..recipe import Recipe

MOST_DECIBELS, OWN_PROMPTS = 100.0, 6  # of a reference model: four to search on and two to check


@app.command()
def calibrate(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    model: ModelOption = DEFAULT_MODEL,
    full_steps: Annotated[int, typer.Option(help="Number of full steps; by default the recipe's.")] = 0,
    psnr: Annotated[float, typer.Option(help="Or: as few full steps as reach this PSNR in dB.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="Or: as many full steps as fit in this time per picture.")] = 0.0,
    prompt: PromptOption = None,
    prompts_file: PromptsFileOption = None,
    prompts: PromptsOption = None,
    budget: Annotated[float, typer.Option(help="Time to spend, in seconds.")] = 60.0,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="The recipe to write; by default RECIPE-calibrated.toml.")] = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    guidance: GuidanceOption = None,
    negative_prompt: NegativeOption = None,
    call: CallOption = None,
    lora: LoraOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Search where a recipe's cache should run full steps, on finished pictures of the model, and write the recipe.

    Give at least 3 prompts, better 6; every third is held out.
    """
    within("full-steps", full_steps, 0, MOST_STEPS)
    within("psnr", psnr, 0, MOST_DECIBELS)
    within("seconds", seconds, 0, LONGEST_RUN)
    within("budget", budget, 0.1, LONGEST_RUN)
    check_numbers(None, 1, seed, prompts, guidance)
    (chosen,), given = recipes_of([recipe]), call_of_json(call)
    path = out or Path(f"{re.sub('[^A-Za-z0-9._-]+', '-', chosen.name)[:100]}-calibrated.toml")
    check_file(path, "--out")
    texts = texts_of(prompt, prompts_file, prompts) or own_prompts(model, prompts or OWN_PROMPTS)
    model, pipe, size = loaded("calibrate", model, device, size, lora)
    from ..calibrated import calibrate as search
    from ..recipe import recipe_toml

    try:
        found, result = search(
            pipe, chosen, prompts=readable(texts, pipe), full_steps=full_steps, psnr=psnr, seconds=seconds, seed=seed,
            budget=budget, size=size, frames=frames, guidance=guidance, negative_prompt=negative_prompt, call=given,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(f"nothing is written, recipe {chosen.name} is as it was") from None
    write_text(path, recipe_toml(found))
    told_as(json, lambda: _as_dict(found, path), lambda: f"{result}\nwritten: {path}")


def _as_dict(found: Recipe, path: Path) -> dict[str, Any]:
    return {"recipe": found.name, "path": str(path), "notes": found.notes, "cache": found.stages["cache"]}
