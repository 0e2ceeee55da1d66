"""Files: read with one line where something is wrong, written whole or not at all, and kept inside their folder."""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import tomli_w

from .errors import StackError
from .validate import shown

LARGEST_TEXT = 1 << 20  # bytes of a recipe, card or list of prompts
LONGEST_NAME = 200  # bytes of a file's name: there has to be room for that of the unfinished file
LOCK = ".ditstack-lock"


def read_text(path: Path, what: str) -> str:
    """The text of a file. A byte order mark is left out.

    Args:
        what: the file in words, with its name.

    Raises:
        StackError: not there, no file, not UTF-8, or larger than `LARGEST_TEXT`.
    """
    try:
        if not path.is_file():
            raise StackError(f"{what}: expected a file, got {'a folder' if path.is_dir() else 'none'} at {path}")
        if (size := path.stat().st_size) > LARGEST_TEXT:
            raise StackError(f"{what}: expected at most {LARGEST_TEXT} bytes, got {size}")
        return path.read_text("utf-8-sig")
    except StackError:
        raise
    except UnicodeDecodeError as error:
        raise StackError(f"{what}: expected UTF-8 text, got other bytes at {error.start}") from None
    except (OSError, ValueError) as error:  # a ValueError is a name with a null in it
        raise StackError(f"{what}: cannot be read ({reason(error)})") from None


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        StackError: see `read_text`; or not TOML.
    """
    try:
        return tomllib.loads(read_text(path, what))
    except StackError:
        raise
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise StackError(f"{what} is not valid TOML: {reason(error)}") from None


def toml_text(table: Mapping[str, Any], what: str) -> str:
    """A table as TOML, any text in it escaped.

    Raises:
        StackError: it holds something that TOML has no word for.
    """
    for key, value in table.items():
        if isinstance(value, Mapping):
            for inner, one in value.items():
                _writable(one, f"{what}: {key}.{inner}")
        else:
            _writable(value, f"{what}: {key}")
    return tomli_w.dumps(table)


def _writable(value: Any, where: str) -> None:
    if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
        raise StackError(f"{where}: a file cannot hold {shown(value)}: its names have to be texts")
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for part in parts:
        _writable(part, where)
    if not isinstance(value, (bool, int, float, str, list, tuple, Mapping)):
        raise StackError(f"{where}: a file cannot hold {shown(value)}: leave it out")
    if isinstance(value, float) and not math.isfinite(value):
        raise StackError(f"{where}: a file cannot hold {value}: expected a finite number")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise StackError(f"{where}: a file cannot hold {shown(value)}: it is no Unicode text") from None


def reason(error: BaseException) -> str:
    """What went wrong, without the path: the caller's message names it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def inside(folder: Path, name: str, what: str, links: bool = True) -> Path:
    """A file of a folder, by the relative name that something in this folder gives it.

    Args:
        what: who names it, for the error.
        links: whether a link may lead out of the folder, as those in the hub's cache do.

    Raises:
        StackError: an absolute name, or one that leads out of the folder.
    """
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    if not name or "\0" in name or absolute or ".." in parts:
        raise StackError(f"{what}: expected a file of its own folder, got {shown(name)}")
    path = folder / name
    if not links and not path.resolve().is_relative_to(folder.resolve()):
        raise StackError(f"{what}: {shown(name)} is a link out of {folder}: expected a file of its own folder")
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once it is whole; after an error nothing has changed.

    Raises:
        StackError: the file cannot be written.
    """
    made = path.parent / f".{path.stem[:40]}-{secrets.token_hex(4)}{path.suffix}"
    try:
        yield made
        os.replace(made, path)
    except OSError as error:
        raise StackError(f"cannot write {path} ({reason(error)})") from None
    finally:
        made.unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """Strict JSON: a number that is not finite becomes null, what JSON has no word for its `repr`."""
    return json.dumps(_finite(value), indent=2, allow_nan=False, default=repr)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; see `whole`."""
    with whole(path) as made:
        made.write_text(text, "utf-8")


def check_file(path: Path, option: str) -> None:
    """Whether a file can be written, before the work whose result it is to hold. Leaves nothing behind.

    A whole file takes the place of what is there, so that a device, a pipe or a link would be lost.

    Raises:
        StackError: it cannot; the message names the option.
    """
    other = os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path))
    _check(path, option, "a plain file", path.parent, wrong=other or not path.name)


def check_folder(path: Path, option: str) -> None:
    """Whether files can be written into a folder that may have to be made; see `check_file`."""
    there = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    _check(path, option, "a folder", there, wrong=not there.is_dir())


def _check(path: Path, option: str, wanted: str, folder: Path, wrong: bool) -> None:
    name = shown(str(path))
    if wrong or "\0" in str(path) or len(os.fsencode(path.name)) > LONGEST_NAME:
        raise StackError(f"{option}: expected the name of {wanted} to write, got {name}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise StackError(f"{option}: cannot write to {name} ({reason(error)})") from None


def folder_for(out: Path | None, default: Path, holds: Callable[[Path], str]) -> Path:
    """The folder to write results to: the one that is named, or the first of default, default-2, default-3, ... that is
    not there yet or holds nothing else.

    Args:
        holds: what a folder holds of another question, in words; "" where nothing.

    Raises:
        StackError: the folder that is named holds something else.
    """
    if out is None:
        numbered = (default if n == 1 else default.with_name(f"{default.name}-{n}") for n in itertools.count(1))
        return next(one for one in numbered if not os.path.lexists(one) or (one.is_dir() and not holds(one)))
    if found := holds(out):
        raise StackError(f"--out: {out} holds {found}: choose another folder")
    return out


def answers_another(path: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a JSON file is the record of another question, or cannot be read; False where there is none.

    Args:
        asked: what the record of this question has under these names.
    """
    if not path.exists():
        return False
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(known, dict) or any(known.get(name) != value for name, value in asked.items())


@contextmanager
def claimed(folder: Path, option: str) -> Iterator[None]:
    """A folder that only this process writes to meanwhile. One that was made for it goes again if it stays empty.

    Raises:
        StackError: another process does.
    """
    lock, there = folder / LOCK, folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if lock.exists() and not _running(lock):
            lock.unlink(missing_ok=True)
        with lock.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        hint = f"wait for it, choose another folder, or delete {lock} if there is none"
        raise StackError(f"{option}: process {lock.read_text() or '?'} is writing to {folder}: {hint}") from None
    except OSError as error:
        raise StackError(f"{option}: cannot write to {folder} ({reason(error)})") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        if not there:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def _running(lock: Path) -> bool:
    """Whether the process that wrote a lock is still there."""
    number = lock.read_text().strip()
    if not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
