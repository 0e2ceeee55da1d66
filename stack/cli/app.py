"""The application that commands are put on."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ..core.versions import versions


class Interrupted(Exception):
    """Ctrl-C, and what of the work was kept."""


app = typer.Typer(
    help="Make diffusers pipelines faster: plan, measure, tune and run stacks of passes.",
    pretty_exceptions_enable=False, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        others = {name: version for name, version in versions().items() if name != "ditstack"}
        typer.echo(f"ditstack {__version__}\n{', '.join(f'{name} {version}' for name, version in others.items())}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print versions and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make diffusers pipelines faster: plan, measure, tune and run stacks of passes."""
