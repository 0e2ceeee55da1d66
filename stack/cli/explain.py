"""`ditstack explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .lists import recipes
from .options import (
    DeviceOption,
    FramesOption,
    JsonOption,
    ModelOption,
    SizeOption,
    StepsOption,
    check_numbers,
    recipes_of,
    told_as,
)


@app.command()
def explain(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A shipped recipe or the path of a .toml file; without one the recipes are listed."),
    ] = None,
    model: ModelOption = None,
    steps: StepsOption = None,
    device: DeviceOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    assume: Annotated[str | None, typer.Option(help="Plan for another machine: h100, a100, cpu, ...")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Folder of a saved pipeline, with or without its weights.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the plan for a recipe on a model: order, reasons, clashes and repairs. Nothing is changed.

    For the models that `ditstack recipes` names, this needs no weights.
    """
    if recipe is None:
        return recipes(json=json)
    check_numbers(steps, size=size, frames=frames)
    (chosen,) = recipes_of([recipe])
    from ..explained import explain as explained

    found = explained(chosen, model, config=config, size=size, frames=frames, assume=assume, steps=steps, device=device)
    told_as(json, found.as_dict, lambda: found.text)
