"""The entry point: every error is one line, every exit code says what happened."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer

from ..core.errors import StackError
from ..core.files import reason
from ..core.quiet import quiet
from ..core.validate import shown
from . import calibrate, compare, explain, lists, run, tune  # commands are put on the application by their modules
from .app import Interrupted, app

# The parent of every error about how a command was called; typer names only its youngest child.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
INTERRUPTED, MISUSED, UNREAD = 130, 2, 141  # as shells count Ctrl-C and a closed pipe
_NUMBERS = {"integer": "a whole number", "number": "a number", "float": "a number"}  # by what typer says
COMMANDS = (compare, run, explain, calibrate, tune, lists)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point.

    Exit codes: 0, 2 for a request that cannot be met (one line says why), 130 after Ctrl-C, 141 where nobody reads on.
    """
    code = _main(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()  # here, as an error at the interpreter's end is a traceback
    except BrokenPipeError:
        code = _pipe_closed()
    sys.exit(code)


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
        return _refuse(_told(error, arguments))
    except SystemExit:  # what typer makes of a closed pipe
        return _pipe_closed()
    except OSError as error:  # a full disk, a folder that went away
        return _refuse(f"{reason(error)}: {error.filename}" if error.filename else reason(error))


def _pipe_closed() -> int:
    """What reads the output has ended, as `head` does: nothing more to say, and nobody to say it to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD


def _told(error: Any, arguments: Sequence[str]) -> str:
    """An error about how a command was called; of an option that is no number also what was given."""
    text = str(error.format_message())
    kind = next((words for sign, words in _NUMBERS.items() if sign in text), None)
    names = error.param.opts if kind and isinstance(error, typer.BadParameter) and error.param else []
    given = [after for name, after in pairwise(arguments) if name in names]
    given += [text.partition("=")[2] for text in arguments if text.partition("=")[0] in names and "=" in text]
    return f"{names[0]}: expected {kind}, got {shown(given[-1])}" if given else text


def _refuse(why: str) -> int:
    typer.echo(f"error: {StackError(why)}", err=True)
    return MISUSED
