"""`ditstack calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import StackError
from ..core.files import check_folder, claimed
from ..core.validate import MOST_STEPS
from .app import Interrupted, app
from .options import (
    LONGEST_RUN,
    MOST_DECIBELS,
    BudgetOption,
    CallOption,
    DeviceOption,
    FramesOption,
    GuidanceOption,
    JsonOption,
    LoraOption,
    MaxSecondsOption,
    MinPsnrOption,
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
    model_for,
    out_option,
    readable,
    recipes_of,
    searched_on,
    told_as,
    within,
)

if TYPE_CHECKING:
    from ..calibration.calibration import Calibration
    from ..calibration.goals import Goal

OWN = "balanced"  # the shipped recipe with a cache for the default model
OWN_PROMPTS = 6  # of a reference model: four to search on and two to check


@app.command()
def calibrate(
    recipe: RecipeArgument = OWN,
    model: ModelOption = None,
    full_steps: Annotated[int, typer.Option(help="Number of full steps; by default the recipe's.")] = 0,
    min_psnr: MinPsnrOption = 0.0,
    max_seconds: MaxSecondsOption = 0.0,
    prompt: PromptOption = None,
    prompts_file: PromptsFileOption = None,
    prompts: PromptsOption = None,
    budget: BudgetOption = 60.0,
    seed: SeedOption = 0,
    out: Annotated[Path | None, out_option("ditstack-calibrate")] = None,
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

    Asks for a number of full steps, or for as few as reach --min-psnr (mean over the prompts, against the same stack
    without its cache), or for as many as fit in --max-seconds. Give at least 3 prompts, better 6; every third is held
    out. Writes calibrated.toml, calibrate.json and curve.png.
    """
    goal = _goal(full_steps, min_psnr, max_seconds, budget)
    check_numbers(None, 1, seed, prompts, guidance, size, frames)
    (chosen,), given = recipes_of([recipe]), call_of_json(call)
    if "cache" not in chosen.stages:
        hint = "; Stack.fit_solver(prompts) fits its solver" if "solver" in chosen.stages else ""
        wanted = f"expected one with [cache], such as {OWN}{hint}"
        raise StackError(f"recipe {chosen.name} has no cache to calibrate: {wanted}")
    if out is not None:
        check_folder(out, "--out")
    model = model_for(model, [chosen])
    texts = searched_on(prompt, prompts_file, prompts, model, OWN_PROMPTS)
    model, pipe, size = loaded("calibrate", model, device, size, lora)
    from ..calibrated.calibrate import calibrate as search
    from ..calibrated.results import folder_of, question, record, save
    from ..runtime.call_arguments import call_of

    texts = readable(texts, pipe)
    asked = question(chosen, model, texts, goal, seed, call_of(pipe, size, frames, guidance, negative_prompt, given))
    folder = folder_of(out, asked)
    with claimed(folder, "--out"):
        try:
            found, result = search(
                pipe, chosen, prompts=texts, **vars(goal), seed=seed, budget=budget, size=size, frames=frames,
                guidance=guidance, negative_prompt=negative_prompt, call=given,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted(f"nothing is written, recipe {chosen.name} is as it was") from None
        data = record(found, result, asked, pipe.device.type)
        written = save(data, found, result, goal, folder)
    told_as(json, lambda: data, lambda: _text(result, written))
    if result.interrupted:
        raise Interrupted(f"the best until then is kept in {folder}")


def _goal(full_steps: int, min_psnr: float, max_seconds: float, budget: float) -> Goal:
    """What is asked for; what is no number for it is refused."""
    from ..calibration.goals import Goal

    within("full-steps", full_steps, 0, MOST_STEPS)
    within("min-psnr", min_psnr, 0, MOST_DECIBELS)
    within("max-seconds", max_seconds, 0, LONGEST_RUN)
    within("budget", budget, 1, LONGEST_RUN)
    return Goal(full_steps, min_psnr, max_seconds)


def _text(result: Calibration, written: Sequence[Path]) -> str:
    return f"{result}\n{result.table()}\nwritten: {', '.join(map(str, written))}"
