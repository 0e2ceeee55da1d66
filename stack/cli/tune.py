"""`ditstack tune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.files import check_folder, claimed, json_text
from .app import Interrupted, app
from .options import (
    DEFAULT_MODEL,
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
    SeedOption,
    SizeOption,
    call_of_json,
    check_numbers,
    loaded,
    own_prompts,
    readable,
    recipes_of,
    texts_of,
    within,
)

if TYPE_CHECKING:
    from ..tuning.tune import Tuned

FOLDER, STUDY = Path("ditstack-tune"), "study.db"
OWN_PROMPTS, MOST_TRIALS, MOST = 12, 100_000, 1e6


@app.command()
def tune(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe whose passes every candidate has; none by default.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    min_psnr: Annotated[float, typer.Option(help="Lowest PSNR in dB, median over prompts.")] = 0.0,
    max_lpips: Annotated[float, typer.Option(help="Largest perceptual distance (LPIPS), median over prompts.")] = 0.0,
    max_error: Annotated[float, typer.Option(help="Largest error of the final latents, median over prompts.")] = 0.0,
    max_seconds: Annotated[float, typer.Option(help="Longest time per picture in seconds.")] = 0.0,
    max_memory: Annotated[float, typer.Option(help="Highest memory in GB while a picture is made.")] = 0.0,
    prompt: PromptOption = None,
    prompts_file: PromptsFileOption = None,
    prompts: PromptsOption = None,
    steps: Annotated[int | None, typer.Option(help="Denoiser steps of the plain model; by default its own.")] = None,
    seed: SeedOption = 0,
    budget: Annotated[float, typer.Option(help="Approximate time to spend, in seconds.")] = 600.0,
    trials: Annotated[int, typer.Option(help="Largest number of candidates.")] = 400,
    size: SizeOption = None,
    frames: FramesOption = None,
    guidance: GuidanceOption = None,
    negative_prompt: NegativeOption = None,
    call: CallOption = None,
    lora: LoraOption = None,
    compile_base: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Try compiled blocks, and use the faster.")
    ] = True,
    out: Annotated[Path, typer.Option(help="Folder for tuned.toml, tune.json, front.png and the study.")] = FOLDER,
    study: Annotated[
        str | None, typer.Option(help="Optuna database, a file or URL; by default study.db in --out.")
    ] = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Search passes and settings for the fastest stack within limits, check it on held-out prompts, write its recipe.

    Give at least 3 prompts, better 12; every third is held out. The same command continues where it was stopped.
    """
    limits: dict[str, Any] = {
        "min_psnr": min_psnr, "max_lpips": max_lpips, "max_error": max_error, "max_seconds": max_seconds,
        "max_memory": max_memory,
    }  # fmt: skip
    check_numbers(steps, 1, seed, prompts, guidance)
    fixed, given = recipes_of([recipe])[0] if recipe else None, call_of_json(call)
    check_folder(out, "--out")
    _check(limits, budget, trials)
    texts = texts_of(prompt, prompts_file, prompts) or own_prompts(model, prompts or OWN_PROMPTS)
    model, pipe, size = loaded("tune", model, device, size, lora)
    from ..tuning.results import record, save, verdict
    from ..tuning.tune import tune as search

    with claimed(out, "--out"):
        found = search(
            pipe, fixed, prompts=readable(texts, pipe), **limits, steps=steps, seed=seed, budget=budget, trials=trials,
            size=size, frames=frames, guidance=guidance, negative_prompt=negative_prompt, call=given,
            compile_base=compile_base, study=study or out / STUDY, name=model,
        )  # fmt: skip
        written = save(found, out, model, pipe.device.type)
    _show(found, written, json_text(record(found, model, pipe.device.type)) if json else "")
    if found.partial:
        raise Interrupted(verdict(found))


def _show(found: Tuned, written: Sequence[Path], text: str) -> None:
    """Print the text for scripts, or the table and where everything is."""
    from ..comparison.console import console
    from ..tuning.results import print_front

    if text:
        return typer.echo(text)
    print_front(found, console())
    typer.echo(f"written: {', '.join(map(str, written))}")


def _check(limits: Mapping[str, float], budget: float, trials: int) -> None:
    """Refuse what can be refused before a model is loaded."""
    from ..tuning.limits import Limits
    from ..tuning.study import optuna_or_error

    for name, value in limits.items():
        within(name.replace("_", "-"), value, 0, MOST)
    within("budget", budget, 1, LONGEST_RUN)
    within("trials", trials, 1, MOST_TRIALS)
    Limits(**limits)
    optuna_or_error()
