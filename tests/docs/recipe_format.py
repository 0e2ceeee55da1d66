"""The tables of docs/recipe-format.md, from the dataclasses behind the keys: `python -m tests.docs.recipe_format`."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from inspect import getdoc
from typing import Any

from stack.caching.contract import GATES, SITES
from stack.caching.forecast import Forecast
from stack.caching.policy import PARTS, Policy
from stack.caching.schedule_policy import SchedulePolicy
from stack.caching.splits import SPLITS
from stack.passes import PASSES

from .blocks import ROOT

PAGE = ROOT / "docs" / "recipe-format.md"
MARKS = ("<!-- keys: written by python -m tests.docs.recipe_format -->\n", "<!-- end of keys -->")
ENTRY = re.compile(r"^    ([a-z0-9_, ]+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def meanings(kind: type[Any]) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = (getdoc(base) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        for names, said in ENTRY.findall(text):
            found |= dict.fromkeys(names.split(", "), " ".join(said.split()))
    return found


def table(title: str, kind: type[Any]) -> list[str]:
    """The keys of a dataclass: default and meaning."""
    said = meanings(kind)
    own = [f for f in fields(kind) if f.init and f.name not in PARTS]
    rows = [f"| `{f.name}` | {_default(f)} | {said.get(f.name, '').replace('|', '&#124;')} |" for f in own]
    return [title, "", "| key | default | meaning |", "|---|---|---|", *rows, ""] if rows else []


def _default(field: Any) -> str:
    if field.default is MISSING:
        return "required"
    shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return "none" if field.default in (None, "", ()) else f"`{shown}`"


def keys() -> str:
    """All tables."""
    stages = [line for stage, kind in PASSES.items() if stage != "cache" for line in table(f"### [{stage}]", kind)]
    parts: list[tuple[str, type[Any]]]
    parts = [("any cache", Policy), ("its schedule", SchedulePolicy), ("its forecast", Forecast)]
    for word, kinds in (("split", SPLITS), ("site", SITES), ("gate", GATES)):
        parts += [(f'{word} = "{name}"', kind) for name, kind in kinds.items()]
    cache = [line for title, kind in parts for line in table(f"#### {title}", kind)]
    intro = ["### [cache]", "", "`method` is a [preset](methods.md#presets); the other keys change its choices.", ""]
    return "\n".join([*stages, *intro, *cache])


def written(text: str) -> str:
    """The page with these tables."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{keys()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
