"""The application that commands are put on."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..core.errors import StackError
from ..core.files import json_text
from ..core.versions import versions

ORDER = ("run", "compare", "explain", "calibrate", "tune", "recipes", "models", "adapters", "rules")


class Interrupted(Exception):
    """Ctrl-C, and what of the work was kept."""


class InOrder(TyperGroup):
    """Commands as one meets them, not as their modules are imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=InOrder,
    help="Make diffusers pipelines faster: plan, measure, tune and run stacks of passes.",
    pretty_exceptions_enable=False, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print versions and exit.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --version: print them as JSON.")] = False,
) -> None:
    """Make diffusers pipelines faster: plan, measure, tune and run stacks of passes."""
    if version:
        others = {name: found for name, found in versions().items() if name != "ditstack"}
        text = f"ditstack {__version__}\n{', '.join(f'{name} {found}' for name, found in others.items())}"
        typer.echo(json_text({"version": __version__, **others}) if json else text)
        raise typer.Exit
    if json:
        raise StackError("--json goes behind the command: ditstack COMMAND --json, or ditstack --version --json")
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
