"""`ditstack run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.files import check_folder
from .app import Interrupted, app
from .options import (
    DEFAULT_RECIPE,
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
    StepsOption,
    call_of_json,
    check_numbers,
    loaded,
    model_for,
    out_option,
    readable,
    recipes_of,
    texts_of,
    told_as,
)
from .words import tell


@app.command()
def run(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    model: ModelOption = None,
    prompt: PromptOption = None,
    prompts_file: PromptsFileOption = None,
    prompts: PromptsOption = None,
    out: Annotated[Path | None, out_option("ditstack-run")] = None,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    size: SizeOption = None,
    frames: FramesOption = None,
    guidance: GuidanceOption = None,
    negative_prompt: NegativeOption = None,
    call: CallOption = None,
    lora: LoraOption = None,
    attention_map: Annotated[
        bool,
        typer.Option("--attention-map", help="Also plot the blocks that sparse attention kept, by layer and step."),
    ] = False,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Make pictures with a recipe, and report what each step did. Videos are saved as animated PNG."""
    check_numbers(steps, 1, seed, prompts, guidance, size, frames)
    (chosen,), given = recipes_of([recipe]), call_of_json(call)
    if out is not None:
        check_folder(out, "--out")
    texts = texts_of(prompt, prompts_file, prompts)
    model, pipe, size = loaded("run", model_for(model, [chosen]), device, size, lora)
    from ..comparison.attention_map import check_map, save_attention_map
    from ..comparison.pictures import run as run_stack
    from ..reference.prompts import drawn_prompts
    from ..stack import Stack

    texts = readable(texts or drawn_prompts(pipe, prompts or 1, seed, model), pipe)
    stack = Stack.from_recipe(chosen, pipe, steps=steps)
    asked: dict[str, Any] = {"size": size, "frames": frames, "guidance": guidance, "negative_prompt": negative_prompt}
    if attention_map:
        check_map(stack.plan, "--attention-map")
    done = []
    try:
        for made in run_stack(stack, texts, out, seed=seed, **asked, call=given, model=model, recipe=chosen.name):
            done.append(made)
            if not json:
                tell(f"{made.path}\n{made.report}")
            if attention_map:
                drawing = made.path.parent / f"attention-{len(done) - 1:03d}.png"
                save_attention_map(made.report, drawing)
                typer.echo(f"attention: {drawing}", err=json)
    except KeyboardInterrupt:
        where = f" in {done[0].path.parent}" if done else ""
        raise Interrupted(f"the first {len(done)} of {len(texts)} pictures are kept{where}") from None
    if json:
        told_as(True, lambda: [made.as_dict() for made in done], str)
