"""Values against the annotations of the dataclass that takes them: one check for Python calls, recipes and cards.

Strict: 1 is not true, and "1" is not a number. A whole number is accepted as a float and a list as a
tuple, as TOML writes them. NaN, infinity and lists beyond `LONGEST` are refused everywhere.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types as limits
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError

from .errors import StackError, nearest

LONGEST = 10_000  # entries of a list or table
LARGEST = 2**63 - 1  # of a whole number, as TOML has it
MOST_STEPS = 10_000
LARGEST_SETTING = 1_000_000  # a whole number that is handed on to another library
MOST_SHOWN = 60  # characters of a refused value

RunSteps = Annotated[int, limits.Ge(1), limits.Le(MOST_STEPS)]
Steps = Annotated[int, limits.Ge(0), limits.Le(MOST_STEPS)]
Count = Annotated[int, limits.Ge(0)]
Seed = Annotated[int, limits.Ge(-(2**62)), limits.Le(2**62)]  # there is room to count up from it
AtLeastOne = Annotated[int, limits.Ge(1)]
Setting = bool | Annotated[int, limits.Ge(-LARGEST_SETTING), limits.Le(LARGEST_SETTING)] | float | str
Share = Annotated[float, limits.Ge(0), limits.Le(1)]
NotNegative = Annotated[float, limits.Ge(0)]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", type(None): "nothing",
}  # fmt: skip
_BOUNDS: tuple[tuple[type[Any], str, str], ...] = (
    (limits.Ge, "ge", "at least"), (limits.Gt, "gt", "more than"),
    (limits.Le, "le", "at most"), (limits.Lt, "lt", "less than"),
)  # fmt: skip


def check_fields(instance: Any, where: str) -> None:
    """Check a dataclass instance's arguments against their annotations.

    Lists become tuples where the annotation has tuples, and numpy's numbers become Python's.

    Args:
        where: what the arguments are of, in front of their names: "cache" gives "cache.interval".

    Raises:
        StackError: a value of another type or outside its annotation's bounds; it names the argument.
    """
    given: dict[str, Any] = vars(instance)
    kind: Any = type(instance)
    for name, hint, default in _annotations(kind):
        value = given[name]
        if value is default:
            continue
        taken = checked(hint, value, f"{where}.{name}")
        if type(value) not in (bool, int, float, str):
            object.__setattr__(instance, name, taken)


def check_table(kind: Any, table: Mapping[str, Any], where: str, what: str = "") -> dict[str, Any]:
    """Entries of a file against the annotations of the dataclass that takes them, by name.

    Args:
        kind: the dataclass, or annotations by name.
        where: the file or the table, in front of the entry's name: "recipe x: " gives "recipe x: steps".
        what: the table in words; the same by default.

    Raises:
        StackError: an unknown entry, or a value of another type or outside its bounds.
    """
    hints = kind if isinstance(kind, Mapping) else hints_of(kind)
    for name in table:
        if name not in hints:
            raise nearest(f"entry of {what or where.rstrip(':. ')}", name, hints)
    return {name: checked(hints[name], value, f"{where}{name}") for name, value in table.items()}


def checked(hint: Any, value: Any, where: str) -> Any:
    """A value as an annotation wants it.

    Raises:
        StackError: it is of another type, or outside the bounds; the message begins with `where`.
    """
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    place = found[0]["loc"] if len(found) == 1 else ()
    hint, value, at = _inside(hint, value, place)
    raise StackError(f"{where}{at}: expected {words(hint)}, got {shown(value)}") from None


def prompts_of(given: Any, what: str = "prompts") -> list[Any]:
    """Prompts (or class numbers) as a list; a single one becomes a list of one.

    Raises:
        StackError: none, or something else among them.
    """
    prompts = [given] if isinstance(given, (str, int)) else list(given) if isinstance(given, Sequence) else None
    if prompts is None or not all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in prompts):
        raise StackError(f"{what}: expected a list of texts, got {shown(given)}")
    return prompts


def some_prompts(given: Any) -> list[Any]:
    """The same, where there has to be one."""
    prompts = prompts_of(given)
    if not prompts:
        raise StackError("prompts: expected at least one, got none")
    return prompts


def shown(value: Any) -> str:
    """A value in an error: on one line, and not too long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = "a number of too many digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def words(hint: Any) -> str:
    """What an annotation allows, in words."""
    if hint in _WORDS:
        return _WORDS[hint]
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        bounds = [f"{text} {getattr(m, name):g}" for m in inner[1:] for t, name, text in _BOUNDS if isinstance(m, t)]
        return words(inner[0]) + (f" of {' and '.join(bounds)}" if bounds else "")
    if kind in (Union, types.UnionType):
        return " or ".join(words(choice) for choice in inner if choice is not type(None))
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind is tuple and inner[-1:] == (...,):
        return f"a list, each {words(inner[0])}"
    if kind is tuple:
        return f"a list of {len(inner)}, {', '.join(dict.fromkeys(f'each {words(item)}' for item in inner))}"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a table" if inner[1] is Any else f"a table, each {words(inner[1])}"
    return f"a {hint.__name__}" if isinstance(hint, type) else "another value"


def hints_of(kind: Any) -> dict[str, Any]:
    """Annotations of a dataclass's arguments, by name."""
    return {name: hint for name, hint, _ in _annotations(kind)}


@cache
def _annotations(kind: Any) -> list[tuple[str, Any, Any]]:
    """Name, annotation and default of every argument."""
    hints = get_type_hints(kind, include_extras=True)
    return [(f.name, hints[f.name], f.default) for f in fields(kind) if f.init]


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    if is_dataclass(hint):  # an instance as it is: pydantic would refuse the config
        return TypeAdapter(InstanceOf.__class_getitem__(hint))
    read: Any = Annotated[_schema(hint), Field()]  # without the Field, a dataclass would refuse the config
    return TypeAdapter(read, config=_STRICT)


def _schema(hint: Any) -> Any:
    """An annotation as pydantic should read it: instances as they are, what TOML has instead of tuples let in."""
    if hint is int:
        return Annotated[int, limits.Ge(-LARGEST), limits.Le(LARGEST), BeforeValidator(_plain)]
    if hint is float:
        return Annotated[float, BeforeValidator(_plain)]
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return Annotated[(_schema(inner[0]), *inner[1:])]
    if kind in (Union, types.UnionType):
        return Union[tuple(map(_schema, inner))]  # noqa: UP007  # made at run time: `|` takes two
    if kind is tuple:
        parts = tuple(item if item is ... else _schema(item) for item in inner)
        # A tuple type is made at run time here, which a type checker cannot read.
        made: Any = tuple.__class_getitem__(parts)
        return Annotated[made, AfterValidator(_short), BeforeValidator(_as_tuple)]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        # As with tuples; typeshed does not declare it for Mapping.
        made = Mapping.__class_getitem__((inner[0], _schema(inner[1])))  # type: ignore[attr-defined]  # see above
        return Annotated[made, AfterValidator(_short)]
    if isinstance(hint, type) and kind is None and hint is not Any and (is_dataclass(hint) or hint not in _WORDS):
        return InstanceOf.__class_getitem__(hint)
    return hint


def _plain(value: Any) -> Any:
    """A number of numpy as Python's; true and false stay what they are."""
    if isinstance(value, bool) or not isinstance(value, Real) or type(value) in (int, float):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else value


def _short(value: Any) -> Any:
    if len(value) > LONGEST:
        raise ValueError("too long")
    return value


def _inside(hint: Any, value: Any, place: Sequence[Any]) -> tuple[Any, Any, str]:
    """The part of a value that was refused, with its annotation and its index in words."""
    at = ""
    for step in place:
        kind, inner = get_origin(hint), get_args(hint)
        if kind is not tuple or not isinstance(step, int) or not inner or not step < len(value):
            break
        hint, value = inner[0] if inner[-1] is ... else inner[min(step, len(inner) - 1)], value[step]
        at += f"[{step}]"
    return hint, value, at
