"""Mutants of TOML texts: changed tables, and changed bytes."""

from __future__ import annotations

import copy
import random
import tomllib
from typing import Any

import tomli_w

VALUES: tuple[Any, ...] = (
    True, False, 0, 1, -1, 2, 3, 64, 2.5, 0.5, 1e-300, 1e300, -1e300, 10**6, 10**18, 2**63, 10**30, float("nan"),
    float("inf"), float("-inf"), "", "x", "yes", "3", "auto", "keep", "budget", "output", "\u2028",
    'a"b\\\n\x00\x7f\t',
    "../../etc/x", "/etc/passwd", "C:\\x", "x" * 5000, [], [0, "a"], [1.0, 0.5, 0.25], [1, 2, 3], [[1.0, 2.0]],
    [["a", "nf4"]], [True], [float("nan"), 1.0], [3, 2, 1], [0] * 20_000, {}, {"a": 1}, {"a": "nf4"}, [{"a": 1}],
)  # fmt: skip
KEYS = ("x", "", "a b", 'q"', "steps", "name", "cache", "distill", "sigmas", "notes", "method", "max_error", "merge")


def mutant(text: str, rng: random.Random) -> bytes:
    """A changed copy of a TOML text: mostly other tables, sometimes other bytes."""
    if rng.random() < 0.75:
        table = tomllib.loads(text)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _change(table, rng)
        return tomli_w.dumps(table).encode()
    return _bytes(text, rng)


def _change(table: dict[str, Any], rng: random.Random) -> None:
    """Change one place of a table, or of a table in it."""
    inner = [value for value in table.values() if isinstance(value, dict)]
    if inner and rng.random() < 0.75:
        return _change(rng.choice(inner), rng)
    key = rng.choice([*table, rng.choice(KEYS)])
    way = rng.randrange(6)
    if way == 0:
        table.pop(key, None)
    elif way == 1 and key in table:
        table[rng.choice((key + "s", key[:-1], key.upper(), rng.choice(KEYS)))] = table.pop(key)
    elif way == 2 and isinstance(table.get(key), list) and table[key]:
        changed = list(table[key])
        changed[rng.randrange(len(changed))] = rng.choice(VALUES)
        table[key] = changed
    elif way == 3 and table:
        table[key] = copy.deepcopy(table[rng.choice(list(table))])
    else:
        table[key] = copy.deepcopy(rng.choice(VALUES))
    return None


def _bytes(text: str, rng: random.Random) -> bytes:
    data, lines = text.encode(), text.splitlines()
    at = rng.randrange(len(data) + 1)
    way = rng.randrange(7)
    if way == 0:
        return data[:at]
    if way == 1:
        line = rng.choice(lines)
        return "\n".join([*lines, line]).encode()
    if way == 2:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if way == 3:
        return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
    if way == 4:
        return text.replace("[", "[[", 1).replace("]", "]]", 1).encode()
    if way == 5:
        return data[:at] + rng.choice((b"\x00", b"[" * 5000, b"9" * 5000, b"\xff\xfe", b'"', b"\r", b"= ")) + data[at:]
    return b"" if rng.random() < 0.1 else bytes(rng.sample(data, len(data)))
