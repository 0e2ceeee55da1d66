"""Random options of caches: a plan in words, or one line that says what was expected.

python -m tests.fuzz.options --count 2000 --seed 0
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from random import Random
from typing import Any

from stack import Stack, StackError
from stack.caching.forecast import BASES, COORDINATES
from stack.caching.methods import PRESETS
from stack.caching.policy import DTYPES, KINDS, PARTS, known_options
from stack.caching.schedule_policy import SchedulePolicy
from stack.caching.sites.block_range import ResidualSite

from ..conftest import tiny_denoiser, tiny_pipe

NAMES = (*known_options(), *PARTS, "max_error", "method", "keep", "reuse_maps", "Site", "", "interval ")
KNOWN = (name for kinds in KINDS.values() for name in kinds)
WORDS = (*BASES, *COORDINATES, *DTYPES, *KNOWN, "even", "ca", "dit", "1GB")
NUMBERS = (0, 1, 2, 3, 7, 14, 50, -1, 10**6, 10**30, 0.0, 0.1, 0.5, 0.85, 1.0, 2.0, -0.5, 1e-300, 1e300)
NO_NUMBERS = (math.nan, math.inf, -math.inf, True, False, None, 1j, b"x")
OBJECTS = (SchedulePolicy(interval=3), ResidualSite(1, 1), object(), dict, len, {"a": 1}, {1, 2})
LENGTHS = (0, 1, 2, 3, 4, 9)


def value(random: Random, depth: int = 0) -> Any:
    """Something that might be given as an option."""
    kind = random.random()
    if kind < 0.45:
        return random.choice(NUMBERS)
    if kind < 0.6:
        return random.choice(WORDS)
    if kind < 0.7:
        return random.choice(NO_NUMBERS)
    if kind < 0.78:
        return random.choice(OBJECTS)
    made = [value(random, depth + 1) if depth < 2 else 1 for _ in range(random.choice(LENGTHS))]
    return made if random.random() < 0.3 else tuple(made)


def like(random: Random, now: Any) -> Any:
    """Another value of the same kind, which is likely to be taken."""
    if isinstance(now, bool):
        return not now
    if isinstance(now, int):
        return max(0, now + random.randint(-2, 4))
    if isinstance(now, float):
        return random.choice((now, now / 2, 1 - now, 0.3))
    if isinstance(now, str):
        return random.choice(WORDS)
    if isinstance(now, tuple) and now:
        return tuple(like(random, each) for each in now)
    return now


def drawn(random: Random) -> tuple[Any, dict[str, Any]]:
    """A method and options for it."""
    method = random.choice((*PRESETS, "svd"))
    usual = PRESETS[method].options()
    options = {}
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        name = random.choice(tuple(usual) if random.random() < 0.7 else NAMES)
        options[name] = like(random, usual[name]) if name in usual and random.random() < 0.8 else value(random)
    return (value(random) if random.random() < 0.05 else method), options


def outcome(stack: Stack, method: Any, options: dict[str, Any]) -> str:
    """ "planned", or "refused".

    Raises:
        AssertionError: a refusal of more than one line, or of none.
    """
    try:
        assert "cache" in stack.cache(method, **options).explain()
    except StackError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 1000, text
        return "refused"
    return "planned"


def run(count: int, seed: int) -> Counter[str]:
    """So many random caches; whatever is neither planned nor refused is raised, with what it was."""
    random, found = Random(seed), Counter[str]()
    models = (tiny_pipe(), tiny_denoiser(2, 2))
    for number in range(count):
        method, options = drawn(random)
        steps = random.choice((1, 4, 11, 14, 28, 50))
        options = {name: given for name, given in options.items() if name != "method"}
        try:
            found[outcome(Stack(random.choice(models), steps=steps), method, options)] += 1
        except Exception as error:
            raise AssertionError(f"number {number}: {method!r} with {options!r} at {steps} steps: {error!r}") from error
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(dict(run(given.count, given.seed)))
