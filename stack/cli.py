"""`ditstack`: compare, run and explain stacks from the command line."""

from __future__ import annotations

import logging
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .core.errors import StackError
from .core.files import check_file, check_folder, claimed, reason, write_text
from .core.validate import MOST_STEPS

if TYPE_CHECKING:
    from .recipe import Recipe

# The parent of every error about how a command was called; typer names only its youngest child.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
INTERRUPTED, MISUSED = 130, 2
DEFAULT_RECIPE, DEFAULT_MODEL = "fast", "shapes-flux"
DEFAULT_PROMPT = "a red ring left of a blue star"
DEFAULT_PICTURES = Path("ditstack-run")
MOST_PROMPTS, MOST_DECIBELS, LONGEST_RUN = 1000, 100.0, 86_400.0
LARGEST_SEED = 2**62


class Interrupted(Exception):
    """Ctrl-C, and what of the work was kept."""


app = typer.Typer(
    help="Composable acceleration for diffusion transformers.", pretty_exceptions_enable=False,
    add_completion=False,
)  # fmt: skip

RecipeOption = Annotated[str, typer.Argument(help="A shipped recipe or the path of a .toml file.")]
ModelOption = Annotated[str, typer.Option(help="A reference model, a local diffusers folder, or a hub id OWNER/NAME.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; by default CUDA where there is one.")]
FramesOption = Annotated[int | None, typer.Option(help="Frames of a video, likewise.")]
StepsOption = Annotated[int | None, typer.Option(help="Denoiser steps; by default the recipe's.")]
SizeOption = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, or SIDE; by default the model's own.")]


@app.command()
def compare(
    context: typer.Context,
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Recipes: shipped names or .toml files. One is taken apart pass by pass.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    prompts: Annotated[
        int, typer.Option(help="Prompts, each with its own seed; one timed picture per row and prompt.")
    ] = 3,
    steps: Annotated[int, typer.Option(help="Steps of the base run.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; also draws the prompts.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for grid.png, chart.svg, report.html, compare.json.")] = Path(
        "ditstack-compare"
    ),
    json: Annotated[Path | None, typer.Option(help="Write compare.json here as well.")] = None,
    device: DeviceOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    compile_base: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also try a compiled base, and take the faster.")
    ] = True,
) -> None:
    """Measure what each pass gives alone, together and left out, against the model as it is."""
    _within("prompts", prompts, 1, MOST_PROMPTS)
    _within("steps", steps, 2, MOST_STEPS)
    _within("seed", seed, 0, LARGEST_SEED)
    chosen = _recipes(recipes or [DEFAULT_RECIPE])
    check_folder(out, "--out")
    if json is not None and json.parent != out:
        check_file(json, "--json")
    from .compare.compare import compare as run_compare
    from .compare.console import console, progress_bar
    from .compare.files import save_outcome
    from .compare.table import print_table

    model, pipe, call = _sized(model, device, size, frames)
    with claimed(out, "--out"):
        with progress_bar() as tell:
            outcome = run_compare(pipe, chosen, model, prompts, steps, seed, compile_base, tell, call)
        outcome.record["command"] = shlex.join(["ditstack", *context.obj])
        done = sum(row["prompts_done"] for row in outcome.record["rows"] if not row["same_as"])
        if outcome.record["partial"] and not done:
            raise Interrupted("no picture was measured, nothing is written")
        written = save_outcome(outcome, out, json)
    print_table(outcome.record, console())
    typer.echo(f"written: {', '.join(str(path) for path in written)}")
    if outcome.record["partial"]:
        raise Interrupted(f"the {done} pictures measured until then are kept, marked as partial")


@app.command()
def run(
    recipe: RecipeOption = DEFAULT_RECIPE,
    model: ModelOption = DEFAULT_MODEL,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be given several times.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; by default ditstack-run, or the next free number.")
    ] = None,
    steps: StepsOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; the next ones count up.")] = 0,
    device: DeviceOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
) -> None:
    """Make pictures with a stack, and say what each step did. A video becomes an animated PNG."""
    _within("steps", steps, 1, MOST_STEPS)
    _within("seed", seed, 0, LARGEST_SEED)
    (chosen,) = _recipes([recipe])
    if out is not None:
        check_folder(out, "--out")
    import torch

    from .compare.pictures import check_run, drawn, free_folder, path_of, run_words, save_picture
    from .stack import Stack

    model, pipe, call = _sized(model, device, size, frames)
    texts = _readable(prompt or [], pipe)
    stack = Stack.from_recipe(chosen, pipe, steps=steps)
    words = run_words(chosen, model, stack.plan.facts_after.steps, seed, texts, call)  # a clash is told first
    folder, done = out or free_folder(DEFAULT_PICTURES, words), 0
    with claimed(folder, "--out"):
        check_run(folder, words, "--out")
        try:
            for number, text in enumerate(texts):
                generator = torch.Generator("cpu").manual_seed(seed + number)
                path = path_of(folder, number, text)
                save_picture(drawn(stack, pipe, text, generator, call), path, words)
                done += 1
                typer.echo(f"{path}\n{stack.report()}")
        except KeyboardInterrupt:
            raise Interrupted(f"the first {done} of {len(texts)} pictures are kept in {folder}") from None


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
) -> None:
    """Say what a stack would do to a model: order, reasons, clashes and repairs. Nothing is touched.

    A model whose configuration is published (`ditstack recipes` names them) is planned without its weights.
    """
    if recipe is None:
        return recipes_()
    _within("steps", steps, 1, MOST_STEPS)
    (chosen,) = _recipes([recipe])
    from .reference.unloaded_words import asked
    from .stack import Stack

    if text := asked(chosen, model, config, size, frames, assume, steps, device):
        return typer.echo(text)
    typer.echo(Stack.from_recipe(chosen, _pipeline(model or DEFAULT_MODEL, device), steps=steps).explain())


@app.command()
def calibrate(
    recipe: RecipeOption = DEFAULT_RECIPE,
    model: ModelOption = DEFAULT_MODEL,
    full_steps: Annotated[int, typer.Option(help="So many steps run in full; by default as many as now.")] = 0,
    psnr: Annotated[float, typer.Option(help="Or: as few full steps as reach this PSNR in dB.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="Or: as many full steps as one picture can have in this time.")] = 0.0,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file, one prompt per line, 3 or better 6; every third is held out.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds to spend.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The recipe to write; by default RECIPE-calibrated.toml.")] = None,
    device: DeviceOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
) -> None:
    """Search a recipe's full steps and forecast on a model's own pictures, and write the recipe with what was found."""
    from .calibrate.goals import Goal
    from .recipe import recipe_toml
    from .tune import calibrated, read_prompts

    _within("full-steps", full_steps, 0, MOST_STEPS)
    _within("psnr", psnr, 0, MOST_DECIBELS)
    _within("seconds", seconds, 0, LONGEST_RUN)
    _within("budget", budget, 0.1, LONGEST_RUN)
    _within("seed", seed, 0, LARGEST_SEED)
    goal = Goal(full_steps, psnr, seconds)
    (chosen,) = _recipes([recipe])
    path = out or Path(f"{re.sub('[^A-Za-z0-9._-]+', '-', chosen.name)[:100]}-calibrated.toml")
    check_file(path, "--out")
    texts = read_prompts(prompts) if prompts else _own_prompts(model)
    model, pipe, call = _sized(model, device, size, frames)
    try:
        found, result = calibrated(chosen, pipe, _readable(texts, pipe), goal, seed, budget, call=call)
    except KeyboardInterrupt:
        raise Interrupted(f"nothing is written, recipe {chosen.name} is as it was") from None
    write_text(path, recipe_toml(found))
    typer.echo(f"{result}\nwritten: {path}")


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(metavar="CLASS", help="A denoiser of diffusers.")] = None,
) -> None:
    """List the reference models that ship with the package, or say how a denoiser class is wired."""
    from .models.shown import shown
    from .reference.load import MODELS

    typer.echo(shown(name)) if name else _list(MODELS.items())


@app.command(name="recipes")
def recipes_(
    write: Annotated[Path | None, typer.Option(help="Write the page of those for real models to this file.")] = None,
) -> None:
    """List the shipped recipes with the models that they are for."""
    from .recipe import list_recipes

    if write is not None:
        from .reference.recipe_page import page, plans

        check_file(write, "--write")
        write_text(write, page(plans()))
        return typer.echo(f"written: {write}")
    _list((r.name, f"{r.description} ({', '.join(r.stages)}; {r.steps} steps, {r.model})") for r in list_recipes())


@app.command()
def adapters(
    folder: Annotated[
        Path | None, typer.Option(help="A folder of your own .toml cards instead of those that ship.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Write the table of a page anew, docs/adapters.md.")] = None,
) -> None:
    """List distilled adapters: which denoiser class each is for, its schedule, and whether and where it was checked."""
    from .compare.console import print_columns
    from .distill.find import cards_in, shipped_folder
    from .distill.listing import NARROW, narrow_row, rewritten, summary

    cards = cards_in(folder or shipped_folder())
    if write is not None:
        check_file(write, "--write")
        write_text(write, rewritten(write.read_text() if write.is_file() else "", cards))
        return typer.echo(f"written: {write}")
    print_columns(NARROW, map(narrow_row, cards))
    typer.echo(summary(cards))


@app.command()
def rules(
    name: Annotated[str | None, typer.Argument(help="A rule, as explain() and warnings name it.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write all of them to this markdown file.")] = None,
) -> None:
    """Say what clashes with what, the number behind it, and what is done about it."""
    from .compat.rules import RULES, rule_named
    from .compat.rules.page import page, section

    if write is not None:
        check_file(write, "--write")
        write_text(write, page())
        typer.echo(f"written: {write}")
    elif name is not None:
        typer.echo(section(rule_named(name)))
    else:
        _list((rule.name, rule.title) for rule in RULES.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0, 2 for a request that cannot be met (one line says why), 130 after Ctrl-C."""
    sys.exit(_main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    try:
        with quiet():
            code = app(list(arguments) or ["--help"], standalone_mode=False, obj=list(arguments)) or 0
            if code == INTERRUPTED:  # typer makes this of a Ctrl-C that no command has caught
                raise Interrupted("nothing more is written")
            return code
    except StackError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort, Interrupted) as error:
        kept = error if isinstance(error, Interrupted) else "nothing more is written"
        typer.echo(f"interrupted: {kept}", err=True)
        return INTERRUPTED
    except _USAGE_ERROR as error:
        return _refuse(error.format_message())
    except OSError as error:  # a full disk, a folder that went away
        return _refuse(f"{reason(error)}: {error.filename}" if error.filename else reason(error))


def _refuse(why: str) -> int:
    typer.echo(f"error: {StackError(why)}", err=True)
    return MISUSED


@contextmanager
def quiet() -> Iterator[None]:
    """Keep notes that libraries print at import (optional kernels, optional packages) off the user's screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _within(name: str, value: float | None, least: float, most: float) -> None:
    """Refuse an option's value outside its range; NaN is in none."""
    if value is not None and not least <= value <= most:
        bound = f"at least {least:g}" if value < least else f"a number of at most {most:g}"
        raise StackError(f"--{name} must be {bound}, got {value}")


def _recipes(names: Sequence[str]) -> list[Recipe]:
    from .recipe import load_recipe

    loaded = [load_recipe(name) for name in names]
    titles = [recipe.name for recipe in loaded]
    for title in titles:
        if titles.count(title) > 1:
            raise StackError(f"recipe {title!r} is given {titles.count(title)} times: expected different names")
    return loaded


def _own_prompts(model: str) -> list[str]:
    """Prompts of a reference model: four to search on and two to check."""
    from .compare.compare import captions
    from .reference.load import REFERENCES

    if model not in REFERENCES:
        raise StackError(f"no prompts are known for {model}: expected --prompts FILE, one prompt per line")
    return captions(7, seed=1000, model=model)[1:]


def _sized(model: str, device: str | None, size: str | None, frames: int | None) -> tuple[str, Any, dict[str, int]]:
    """The model, or the one trained for this size, its pipeline, and what its calls have to say of the size beside."""
    from .reference.load import at_size
    from .runtime.call_arguments import size_arguments

    trained = at_size(model, size)
    pipe = _pipeline(trained, device)
    return trained, pipe, size_arguments(pipe, size if trained == model else None, frames)


def _pipeline(model: str, device: str | None) -> Any:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from .loading import load_pipeline

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return load_pipeline(model, device=device)


def _readable(texts: Sequence[str], pipe: Any) -> list[str]:
    """The prompts, or an example where there are none, once it is sure that a reference model can read them."""
    from .reference.load import name_of, reference

    name = name_of(pipe)
    if name is None:
        return list(texts or [DEFAULT_PROMPT])
    known = reference(name)
    return [text for text in texts or [known.example] if known.parse(text)]


def _list(lines: Any) -> None:
    for name, text in lines:
        typer.echo(f"{name}: {text}")


if __name__ == "__main__":
    main()
