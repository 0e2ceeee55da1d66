"""`ditstack models`, `recipes`, `adapters` and `rules`: what there is, listed without loading a library of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import StackError, choose
from ..core.files import check_file, json_text, write_text
from .app import app
from .options import JsonOption, WriteOption, told_as
from .words import tell, tell_list


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A denoiser class of diffusers.")] = None,
    json: JsonOption = False,
) -> None:
    """List the models that ship, or show what ditstack finds in a denoiser class of diffusers."""
    from ..reference.names import MODELS

    if name is None:
        return _list(json, [{"name": name, "description": words} for name, words in MODELS.items()])
    from ..models.wiring_words import shown

    text = shown(name)
    told_as(json, lambda: {"name": name, "lines": text.split("\n")}, lambda: text)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A shipped recipe or a .toml file, whose settings are printed.")
    ] = None,
    write: WriteOption = None,
    json: JsonOption = False,
) -> None:
    """List the shipped recipes and their models, or show one."""
    from ..core.recipe_files import heads

    if write is not None:
        from ..reference.recipe_page import page, plans

        check_file(write, "--write")
        return _written(write, page(plans()), json)
    if name is not None:
        from ..recipe import load_recipe, recipe_toml

        recipe = load_recipe(name)
        head = {"name": recipe.name, "description": recipe.description, "model": recipe.model, "steps": recipe.steps}
        return told_as(json, lambda: {**head, **recipe.stages, "notes": recipe.notes}, lambda: recipe_toml(recipe))
    found = heads()
    if json:
        return typer.echo(json_text([vars(head) for head in found]))
    tell_list(
        (head.name, f"{head.description} ({', '.join(head.stages)}; {head.steps} steps, {head.model})")
        for head in found
    )


@app.command()
def adapters(
    name: Annotated[str | None, typer.Argument(help="An adapter, whose card is printed.")] = None,
    folder: Annotated[Path | None, typer.Option(help="List the .toml cards in this folder instead.")] = None,
    write: WriteOption = None,
    json: JsonOption = False,
) -> None:
    """List distilled adapters with their denoiser class, schedule and licence, or show one."""
    from ..comparison.console import print_columns
    from ..distill.find import cards_in, shipped_folder
    from ..distill.listing import COLUMNS, NARROW, narrow_row, rewritten, row, summary

    cards = cards_in(folder or shipped_folder())
    if not cards:
        raise StackError(f"--folder: expected a folder with cards (*.toml), got none in {folder}")
    if write is not None:
        check_file(write, "--write")
        return _written(write, rewritten(write.read_text() if write.is_file() else "", cards), json)
    if name is not None:
        named = {card.name: card for card in cards}
        if name not in named:
            raise choose("adapter", name, list(named))
        path = (folder or shipped_folder()) / f"{name}.toml"
        return told_as(json, lambda: dict(zip(COLUMNS, row(named[name]), strict=True)), path.read_text)
    if json:
        return typer.echo(json_text([dict(zip(COLUMNS, row(card), strict=True)) for card in cards]))
    print_columns(NARROW, map(narrow_row, cards))
    tell(summary(cards))


@app.command()
def rules(
    name: Annotated[str | None, typer.Argument(help="A rule, by the name that plans and warnings give.")] = None,
    write: WriteOption = None,
    json: JsonOption = False,
) -> None:
    """List what clashes with what, or show one rule: the figure behind it, and what is done."""
    from ..compat.rules import RULES, rule_named
    from ..compat.rules.page import page, section

    if write is not None:
        check_file(write, "--write")
        _written(write, page(), json)
    elif name is not None:
        rule = rule_named(name)
        told_as(json, lambda: vars(rule), lambda: section(rule))
    elif json:
        typer.echo(json_text([vars(rule) for rule in RULES.values()]))
    else:
        tell_list((rule.name, rule.title) for rule in RULES.values())


def _written(path: Path, text: str, json: bool) -> None:
    """Write a page, and say so."""
    write_text(path, text)
    told_as(json, lambda: {"written": str(path)}, lambda: f"written: {path}")


def _list(json: bool, found: list[dict[str, Any]]) -> None:
    typer.echo(json_text(found)) if json else tell_list((one["name"], one["description"]) for one in found)
