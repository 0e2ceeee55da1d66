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
    SizeOption,
    StepsOption,
    check_numbers,
    recipes_of,
    told_as,
)


@app.command()
def explain(
    recipe: Annotated[str | None, typer.Argument(help="As elsewhere; without one they are listed.")] = None,
    model: Annotated[str | None, typer.Option(help="As elsewhere; by default the recipe's, or shapes-flux.")] = None,
    steps: StepsOption = None,
    device: DeviceOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    assume: Annotated[str | None, typer.Option(help="A machine that need not be here: h100, a100, cpu, ...")] = None,
    config: Annotated[Path | None, typer.Option(help="A saved pipeline; its weights need not be there.")] = None,
    json: JsonOption = False,
) -> None:
    """Say what a stack would do to a model: order, reasons, clashes and repairs. Nothing is touched.

    A model whose configuration is published (`ditstack recipes` names them) is planned without its weights.
    """
    if recipe is None:
        return recipes(json=json)
    check_numbers(steps)
    (chosen,) = recipes_of([recipe])
    from ..explained import explain as explained

    found = explained(chosen, model, config=config, size=size, frames=frames, assume=assume, steps=steps, device=device)
    told_as(json, found.as_dict, lambda: found.text)
