"""The entry point: every error is one line, every exit code says what happened."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from ..core.errors import StackError
from ..core.files import reason
from ..core.quiet import quiet
from . import calibrate, compare, explain, lists, run, tune  # commands are put on the application by their modules
from .app import Interrupted, app

# The parent of every error about how a command was called; typer names only its youngest child.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
INTERRUPTED, MISUSED = 130, 2
COMMANDS = (compare, run, explain, calibrate, tune, lists)


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
