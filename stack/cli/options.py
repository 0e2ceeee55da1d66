"""Options that several commands have, each with one meaning, and the checks that come before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import StackError
from ..core.progress import ProgressLine
from ..core.validate import MOST_STEPS

if TYPE_CHECKING:
    from ..recipe import Recipe

DEFAULT_RECIPE, DEFAULT_MODEL = "fast", "shapes-flux"
MOST_PROMPTS, LONGEST_RUN, MOST_DECIBELS = 1000, 86_400.0, 100.0
MOST_FRAMES = 100_000
LARGEST_SEED, MOST_GUIDANCE = 2**62, 1000.0
EXAMPLE = '{"true_cfg_scale": 4}'

RecipeArgument = Annotated[str, typer.Argument(help="A shipped recipe or the path of a .toml file.")]
# Help of options whose defaults differ from command to command.
MODEL = "A model that ships, a local diffusers folder, or a hub id OWNER/NAME."


def out_option(folder: str) -> Any:
    """Of a command with a folder of its own: the first of folder, folder-2, ... without another question's."""
    return typer.Option(help="Folder to write to.", show_default=f"{folder}, or {folder}-2 and so on")


ModelOption = Annotated[str | None, typer.Option(help=MODEL, show_default="the recipe's, or shapes-flux")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda if there is one.")]
StepsOption = Annotated[
    int | None, typer.Option(help="Denoiser steps of the plain model; by default the recipe's, or the model's own.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the first prompt; prompt i has the seed SEED + i.")]
SizeOption = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT or SIDE in pixels; by default the model's own.")]
FramesOption = Annotated[int | None, typer.Option(help="Frames of a video; by default the model's own.")]
GuidanceOption = Annotated[float | None, typer.Option(help="Guidance scale; by default the model's own.")]
NegativeOption = Annotated[str | None, typer.Option("--negative-prompt", help="What not to draw.")]
CallOption = Annotated[
    str | None,
    typer.Option(help='Any other argument of the call, as JSON: {"true_cfg_scale": 4, "image": "cat.png"}.'),
]
LoraOption = Annotated[str | None, typer.Option(help="A LoRA file, folder or hub id, loaded into the model.")]
PromptOption = Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")]
PromptsFileOption = Annotated[Path | None, typer.Option(help="A text file of prompts, one per line.")]
PromptsOption = Annotated[
    int | None, typer.Option(help="Use the first N prompts that are given, or N captions of a reference model.")
]
MinPsnrOption = Annotated[float, typer.Option(help="Lowest PSNR in dB.")]
MaxSecondsOption = Annotated[float, typer.Option(help="Longest time per picture in seconds.")]
BudgetOption = Annotated[float, typer.Option(help="Approximate time to spend, in seconds.")]
CompileOption = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Try the plain model compiled, and compare with the faster.")
]
WriteOption = Annotated[Path | None, typer.Option(help="Page of the documentation, a file, to write this list into.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of text.")]


def within(name: str, value: float | None, least: float, most: float) -> None:
    """Refuse an option's value outside its range; NaN is in none."""
    if value is not None and not least <= value <= most:
        bound = f"at least {least:g}" if value < least else f"a number of at most {most:g}"
        raise StackError(f"--{name} must be {bound}, got {value}")


def check_numbers(
    steps: int | None = None,
    fewest: int = 1,
    seed: int = 0,
    prompts: int | None = None,
    guidance: float | None = None,
    size: str | None = None,
    frames: int | None = None,
) -> None:
    """Refuse numbers of steps, seeds, prompts and frames, sizes, and scales of guidance, that no command takes."""
    from ..runtime.call_arguments import sides_of

    if size is not None:
        sides_of(size)
    within("frames", frames, 1, MOST_FRAMES)
    within("guidance", guidance, 0, MOST_GUIDANCE)
    within("prompts", prompts, 1, MOST_PROMPTS)
    within("steps", steps, fewest, MOST_STEPS)
    within("seed", seed, 0, LARGEST_SEED)


def recipes_of(names: Sequence[str]) -> list[Recipe]:
    """The recipes by name or file, each once."""
    from ..recipe import load_recipe

    loaded = [load_recipe(name) for name in names]
    titles = [recipe.name for recipe in loaded]
    for title in titles:
        if titles.count(title) > 1:
            raise StackError(f"recipe {title!r} is given {titles.count(title)} times: expected different names")
    return loaded


def model_for(model: str | None, recipes: Sequence[Recipe]) -> str:
    """The model that is asked for, or the one that the recipes are for."""
    own = {recipe.model for recipe in recipes}
    return model or (own.pop() if len(own) == 1 else DEFAULT_MODEL)


def call_of_json(text: str | None) -> dict[str, Any] | None:
    """The arguments in `--call`.

    Raises:
        StackError: not a JSON object.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StackError(f"--call: expected JSON such as {EXAMPLE}, got {text[:60]!r} ({error})") from None
    if not isinstance(found, Mapping):
        raise StackError(f"--call: expected arguments by name such as {EXAMPLE}, got {text[:60]!r}")
    return dict(found)


def texts_of(prompt: Sequence[str] | None, file: Path | None, count: int | None) -> list[str]:
    """The prompts on the command line and in the file, or the first of them; none where none are given."""
    from ..reference.prompts import read_prompts

    texts = [*(prompt or []), *(read_prompts(file) if file is not None else [])]
    if file is not None and not texts:
        raise StackError(f"--prompts-file: expected a file with a prompt on each line, got none in {file}")
    if texts and count is not None and count > len(texts):
        raise StackError(f"--prompts must be at most the {len(texts)} prompts that are given, got {count}")
    return texts[:count]


def searched_on(prompt: Sequence[str] | None, file: Path | None, count: int | None, model: str, own: int) -> list[str]:
    """The prompts to search on, as `texts_of` gives them; where none are given, captions, `own` by default.

    Raises:
        StackError: none are given, and the model is no reference model.
    """
    from ..reference.prompts import searched_captions

    return texts_of(prompt, file, count) or searched_captions(model, count or own)


def loaded(
    command: str, model: str, device: str | None, size: str | None = None, lora: str | None = None
) -> tuple[str, Any, str | None]:
    """The model, or the one trained for this size, its pipeline, and the size that its calls have to ask for."""
    with ProgressLine(command) as line:
        line.says(f"loading {model}")  # the libraries alone take seconds
        from ..loading import load
        from ..reference.load import at_size

        trained = at_size(model, size)
        return trained, load(trained, device=device, lora=lora), size if trained == model else None


def readable(texts: Sequence[str], pipe: Any) -> list[str]:
    """The prompts, or an example where there are none, once it is sure that a reference model can read them."""
    from ..reference.captions import DEFAULT
    from ..reference.load import name_of, reference

    name = name_of(pipe)
    known = reference(name or DEFAULT)
    if name is None:
        return list(texts or [known.example])
    return [text for text in texts or [known.example] if known.parse(text)]


def told_as(as_json: bool, data: Callable[[], Any], text: Callable[[], str]) -> None:
    """Print a result: as JSON for scripts, or as text, wrapped to the terminal."""
    from ..core.files import json_text
    from .words import tell

    typer.echo(json_text(data())) if as_json else tell(text())
