"""`ditstack compare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..core.files import check_folder
from .app import Interrupted, app
from .options import (
    DEFAULT_RECIPE,
    CallOption,
    CompileOption,
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
    StepsOption,
    call_of_json,
    check_numbers,
    loaded,
    model_for,
    out_option,
    recipes_of,
    texts_of,
)

FOLDER, PROMPTS, FEWEST_STEPS = Path("ditstack-compare"), 3, 2


@app.command()
def compare(
    context: typer.Context,
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Shipped recipes or .toml files. One is measured pass by pass.")
    ] = None,
    model: ModelOption = None,
    prompt: PromptOption = None,
    prompts_file: PromptsFileOption = None,
    prompts: PromptsOption = None,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    size: SizeOption = None,
    frames: FramesOption = None,
    guidance: GuidanceOption = None,
    negative_prompt: NegativeOption = None,
    call: CallOption = None,
    lora: LoraOption = None,
    peers: Annotated[bool, typer.Option("--peers", help="Also measure cache-dit and the caches of diffusers.")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Also measure each pair of four or more passes.")] = False,
    compile_base: CompileOption = True,
    out: Annotated[Path | None, out_option("ditstack-compare")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again; by default the same command continues where it was stopped.")
    ] = False,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a stack against the plain model: each pass alone, all together, and all but one.

    Writes compare.json, table.md, grid.png, product.png, chart.svg and report.html.
    """
    check_numbers(steps, FEWEST_STEPS, seed, prompts, guidance, size, frames)
    chosen, given = recipes_of(recipes or [DEFAULT_RECIPE]), call_of_json(call)
    check_folder(out or FOLDER, "--out")
    texts = texts_of(prompt, prompts_file, prompts)
    model, pipe, size = loaded("compare", model_for(model, chosen), device, size, lora)
    from ..comparison.compare import compare as run_compare
    from ..comparison.console import console
    from ..comparison.outcome import WIDTH
    from ..comparison.table import print_table

    outcome = run_compare(
        pipe, chosen, prompts=texts or prompts or PROMPTS, steps=steps, seed=seed, size=size, frames=frames,
        guidance=guidance, negative_prompt=negative_prompt, call=given, peers=peers, pairs=pairs,
        compile_base=compile_base, out=out or FOLDER, fresh=fresh, numbered=out is None, name=model,
        command=shlex.join(["ditstack", *context.obj]),
    )  # fmt: skip
    record = outcome.record
    done = sum(row["prompts_done"] for row in record["rows"] if not row["same_as"])
    if record["partial"] and not done:
        raise Interrupted("no picture was measured, nothing is written")
    if json:
        typer.echo(outcome.to_json())
    else:
        print_table(record, console(piped=WIDTH))
        was = "was measured before, --fresh measures anew" if not outcome.pictures else "written"
        typer.echo(f"{was}: {', '.join(map(str, outcome.files))}")
    if record["partial"]:
        raise Interrupted(f"the {done} pictures measured until then are kept; the same command goes on from them")
