"""The application that commands are put on."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__


class Interrupted(Exception):
    """Ctrl-C, and what of the work was kept."""


app = typer.Typer(
    help="Composable acceleration for diffusion transformers.", pretty_exceptions_enable=False,
    add_completion=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ditstack {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Composable acceleration for diffusion transformers."""
