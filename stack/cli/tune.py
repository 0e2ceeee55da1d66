"""`ditstack tune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import StackError
from ..core.files import check_folder, claimed, json_text
from .app import Interrupted, app
from .options import (
    LONGEST_RUN,
    MOST_DECIBELS,
    BudgetOption,
    CallOption,
    CompileOption,
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
    SeedOption,
    SizeOption,
    StepsOption,
    call_of_json,
    check_numbers,
    loaded,
    model_for,
    out_option,
    readable,
    recipes_of,
    searched_on,
    within,
)

if TYPE_CHECKING:
    from ..tuning.tune import Tuned

STUDY = "study.db"
OWN_PROMPTS, MOST_TRIALS, MOST = 18, 100_000, 1e6
LARGEST = {"min_psnr": MOST_DECIBELS, "max_seconds": LONGEST_RUN}


@app.command()
def tune(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe whose passes every candidate has; none by default.")
    ] = None,
    model: ModelOption = None,
    min_psnr: MinPsnrOption = 0.0,
    max_lpips: Annotated[float, typer.Option(help="Largest perceptual distance (LPIPS).")] = 0.0,
    max_error: Annotated[float, typer.Option(help="Largest relative error of the final latents.")] = 0.0,
    max_seconds: MaxSecondsOption = 0.0,
    max_memory: Annotated[float, typer.Option(help="Highest memory in GB while a picture is made.")] = 0.0,
    prompt: PromptOption = None,
    prompts_file: PromptsFileOption = None,
    prompts: PromptsOption = None,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    budget: BudgetOption = 600.0,
    trials: Annotated[int, typer.Option(help="Largest number of candidates.")] = 400,
    size: SizeOption = None,
    frames: FramesOption = None,
    guidance: GuidanceOption = None,
    negative_prompt: NegativeOption = None,
    call: CallOption = None,
    lora: LoraOption = None,
    compile_base: CompileOption = True,
    out: Annotated[Path | None, out_option("ditstack-tune")] = None,
    study: Annotated[
        str | None, typer.Option(help="Optuna database, a file or URL; by default study.db in --out.")
    ] = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Search passes and settings for the fastest stack within limits, check it on held-out prompts, write its recipe.

    Limits are on medians over the prompts. Give at least 3 prompts, better 18; every third is held out. Writes
    tuned.toml, tune.json, front.png and the study. The same command continues where it was stopped.
    """
    limits: dict[str, Any] = {
        "min_psnr": min_psnr, "max_lpips": max_lpips, "max_error": max_error, "max_seconds": max_seconds,
        "max_memory": max_memory,
    }  # fmt: skip
    check_numbers(steps, 1, seed, prompts, guidance, size, frames)
    fixed, given = recipes_of([recipe])[0] if recipe else None, call_of_json(call)
    _check(limits, budget, trials, out)
    model = model_for(model, [fixed] if fixed else [])
    texts = searched_on(prompt, prompts_file, prompts, model, OWN_PROMPTS)
    model, pipe, size = loaded("tune", model, device, size, lora)
    from ..tuning.results import folder_of, record, save
    from ..tuning.tune import tune as search

    folder = folder_of(out, model, limits)
    with claimed(folder, "--out"):
        found = search(
            pipe, fixed, prompts=readable(texts, pipe), **limits, steps=steps, seed=seed, budget=budget, trials=trials,
            size=size, frames=frames, guidance=guidance, negative_prompt=negative_prompt, call=given,
            compile_base=compile_base, study=study or folder / STUDY, name=model,
        )  # fmt: skip
        written = save(found, folder, model, pipe.device.type)
    _show(found, written, json_text(record(found, model, pipe.device.type)) if json else "")


def _show(found: Tuned, written: Sequence[Path], text: str) -> None:
    """Print the text for scripts, or the table and where everything is.

    Raises:
        Interrupted: there is more to search.
    """
    from ..comparison.console import console
    from ..tuning.results import print_front, verdict

    if text:
        typer.echo(text)
    else:
        print_front(found, console())
        typer.echo(f"written: {', '.join(map(str, written))}")
    if found.partial:
        raise Interrupted(verdict(found))


def option(name: str) -> str:
    """The option of a keyword."""
    return f"--{name.replace('_', '-')}"


def _check(limits: Mapping[str, float], budget: float, trials: int, out: Path | None) -> None:
    """Refuse what can be refused before a model is loaded."""
    from ..tuning.limits import Limits
    from ..tuning.study import optuna_or_error

    if out is not None:
        check_folder(out, "--out")
    if not any(limits.values()):
        raise StackError(f"expected a limit to tune for, got none: give one of {', '.join(map(option, limits))}")
    for name, value in limits.items():
        within(option(name).removeprefix("--"), value, 0, LARGEST.get(name, MOST))
    within("budget", budget, 1, LONGEST_RUN)
    within("trials", trials, 1, MOST_TRIALS)
    Limits(**limits)
    optuna_or_error()
