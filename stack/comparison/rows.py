"""Which rows a comparison has: decided from recipes, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import torch

from ..core.errors import StackError
from ..runtime.step import ALL as ALL_COMPUTED
from ..runtime.step import CACHED, NO_BLOCK, Computed

BASE, BASE_EAGER, ALL = "base", "base-eager", "all"
CONTROL = "control"
FEWER, MULTISTEP = "fewer-steps", "fewer-steps-multistep"
MOST_FREE = 3  # passes of a recipe whose pairs are all among its other rows


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Attributes:
        role: "base", "stack", "peer" (another library's cache) or "control".
        group: "base", "alone", "left out", "pair", "all", "peer" or "control"; decides how it is shown.
        recipe: the recipe its passes come from.
        passes: stages that are on, in running order.
        steps: denoiser steps asked for. (A distilled adapter may bring its own.)
        same_as: name of the row that runs the same thing, whose measurement this one shares; set by `share`.
        control_of: for a control, the row whose time it may use.
    """

    name: str
    role: str
    group: str
    recipe: str = ""
    passes: tuple[str, ...] = ()
    steps: int = 50
    same_as: str = ""
    control_of: str = ""


@dataclass
class Generation:
    """One picture or video of one row, and what making it took.

    Attributes:
        picture: (3, H, W) or (F, 3, H, W) float32 on the CPU, in [0, 1].
        kinds: what each step was: "full", "cached" or "partial".
        density: share of the attention that was computed, where it was.
        computed: how much of a full step's work each step did; empty where `kinds` says all.
        sigmas: noise level of each step, as the report of the stack has it; empty without a stack.
        errors: relative error of the cache's forecast, on the steps where it was measured, else None.
    """

    picture: torch.Tensor
    seconds: float
    kinds: tuple[str, ...]
    density: float = 1.0
    cache_bytes: int = 0
    peak_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    computed: tuple[Computed, ...] = ()
    sigmas: tuple[float, ...] = ()
    errors: tuple[float | None, ...] = ()

    @property
    def work(self) -> tuple[Computed, ...]:
        """How much of a full step's work each step did."""
        return self.computed or tuple(NO_BLOCK if kind == CACHED else ALL_COMPUTED for kind in self.kinds)


@dataclass
class Measured:
    """A row and its generations so far, in the order of the prompts."""

    row: Row
    generations: list[Generation] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [g.seconds for g in self.generations]

    @property
    def pictures(self) -> torch.Tensor:
        """(B, 3, H, W) or (B, F, 3, H, W), one per prompt done."""
        return torch.stack([g.picture for g in self.generations])


def plan_rows(
    recipes: Mapping[str, Sequence[str]], steps: int, peers: Sequence[str] = (), pairs: bool = False
) -> list[Row]:
    """The rows, in the order they are shown; controls follow once the time of their row is known.

    One recipe: `base`, each pass alone, `all`, `all` without each pass. Several recipes: `base` and each whole recipe
    under its own name. Then the peers.

    Args:
        recipes: recipe name to its stages, in running order.
        peers: names of other libraries' caches.
        pairs: of one recipe, also each two passes together. (Of three passes or fewer the rows above hold them all.)

    Raises:
        StackError: one of several recipes has the name of the base.
    """
    others = [Row(name, "peer", "peer", steps=steps) for name in peers]
    return _own_rows(recipes, steps, pairs) + others


def _own_rows(recipes: Mapping[str, Sequence[str]], steps: int, pairs: bool) -> list[Row]:
    base = Row(BASE, "base", "base", steps=steps)
    if len(recipes) != 1:
        for name in recipes:
            if name in (BASE, BASE_EAGER):
                raise StackError(f"a recipe cannot be named {name!r} beside others: expected any other name")
        return [base, *(Row(name, "stack", "all", name, tuple(stages), steps) for name, stages in recipes.items())]
    ((recipe, stages),) = recipes.items()
    every = tuple(stages)
    whole = (ALL, "all", every)
    alone = [(stage, "alone", (stage,)) for stage in every]
    without = [(f"{ALL}-{stage}", "left out", tuple(s for s in every if s != stage)) for stage in every]
    two = (
        [("+".join(pair), "pair", pair) for pair in combinations(every, 2)] if pairs and len(every) > MOST_FREE else []
    )
    named = [*alone, whole, *without, *two]
    return [base, *(Row(name, "stack", group, recipe, passes, steps) for name, group, passes in named)]


def share(rows: Sequence[Row], effective: Callable[[Row], object]) -> list[Row]:
    """Rows that would run the same thing are measured once: all but one say in `same_as` which.

    With one or two stages there are some by nature; more where the plan drops a pass that cannot help on this machine.
    The base, the whole stacks and the peers are always measured themselves.

    Args:
        effective: what a row will really run; compared by ==.
    """
    own = [row for row in rows if row.group in ("base", "all")]
    shared = {}
    for row in rows:
        if row not in own and row.role != "peer":
            twin = next((other for other in own if effective(other) == effective(row)), None)
            if twin is None:
                own.append(row)
            else:
                shared[row.name] = replace(row, same_as=twin.name)
    return [shared.get(row.name, row) for row in rows]


def whole_stacks(rows: Sequence[Row]) -> list[Row]:
    """The rows that hold a whole recipe: these get controls."""
    return [row for row in rows if row.group == "all" and not row.same_as]


def controls_of(row: Row, steps: int, single: bool, multistep: bool = True) -> list[Row]:
    """The base run with as many steps as fit in this row's time.

    A whole stack has two, the second of them with a second-order solver; any other row has the first.

    Args:
        single: there is one recipe: the controls of its whole stack need not say whose they are.
    """
    whole = row.group == "all"
    names = [FEWER, MULTISTEP] if multistep and whole else [FEWER]
    plain = single and whole
    return [
        Row(name if plain else f"{name}@{row.name}", CONTROL, CONTROL, row.recipe, (), steps, control_of=row.name)
        for name in names
    ]


def has_control(row: Row) -> bool:
    """Whether a row is measured against fewer plain steps."""
    return row.role in ("stack", "peer") and not row.same_as


def is_multistep(row: str) -> bool:
    """Whether the control of this name walks the schedule with the second-order solver."""
    return row.split("@")[0] == MULTISTEP


def uncached_partner(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row with the same passes but without the cache: what its cache error is measured against."""
    if "cache" not in row.passes:
        return None
    rest = tuple(stage for stage in row.passes if stage != "cache")
    named = {r.name: r for r in rows}
    fitting = [r for r in rows if r.role != CONTROL and r.passes == rest and r.recipe in ("", row.recipe)]
    return named.get(fitting[0].same_as, fitting[0]) if fitting else None
