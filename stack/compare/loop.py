"""The measuring loop: warm-up, then every row in turn, prompt after prompt; what is done survives an interruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..core.errors import StackError
from ..measure.timing import RoundRobin, median, steps_that_fit
from ..runtime.report import steps_worth
from .engine import Engine
from .rows import BASE, Measured, Row, controls_of, whole_stacks


@dataclass(frozen=True)
class Progress:
    """How far the loop is: pictures done and in all, what runs now, seconds left (None while unknown)."""

    done: int
    total: int
    text: str
    seconds_left: float | None


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        rows: by name; in the order they were planned, controls last.
        partial: the loop was interrupted.
        rounds: full rounds that were asked for.
    """

    rows: dict[str, Measured]
    rounds: int
    partial: bool = False
    warnings: list[str] = field(default_factory=list)


def measure(
    engine: Engine,
    rows: Sequence[Row],
    prompts: Sequence[str],
    seed: int,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Measurement:
    """Generate every (row, prompt), row after row within a prompt; prompt i uses seed + i.

    The base and the whole stacks take the first turns, so that the controls know how many steps they may take and
    get as many turns as everyone else. KeyboardInterrupt ends the loop and keeps what was measured. A row that fails
    while it runs (out of memory, an unsupported kernel, a pipeline that refuses its scheduler) says so in its warnings
    and takes no further turns.

    Raises:
        RuntimeError, StackError: the base itself fails.
    """
    single = len({row.recipe for row in rows if row.recipe}) <= 1
    own = [row for row in rows if not row.same_as]
    whole = whole_stacks(own)
    first = [row for row in own if row.role == "base"] + whole
    turns = RoundRobin([row.name for row in [*first, *(r for r in own if r not in first)]], len(prompts))
    loop = _Loop(engine, Measurement({row.name: Measured(row) for row in rows}, len(prompts)), turns, tell)
    loop.expected = len(whole) * (2 if engine.multistep else 1)
    try:
        for name in turns.rows:
            loop.attempt(name, "warming up", lambda row: engine.warm_up(row, prompts[0]))
        for number, name in turns:
            doing = f"picture {number + 1} of {len(prompts)}"
            done = loop.attempt(name, doing, partial(loop.take, prompt=prompts[number], seed=seed + number))
            if done and number == 0 and name in [row.name for row in whole]:
                loop.add_controls(name, single, prompts[0])
    except KeyboardInterrupt:
        loop.result.partial = True
    return loop.result


@dataclass
class _Loop:
    """State of one run of `measure`."""

    engine: Engine
    result: Measurement
    turns: RoundRobin
    tell: Callable[[Progress], None]
    expected: int = 0  # controls still to be added

    def attempt(self, name: str, doing: str, work: Callable[[Row], None]) -> bool:
        """Do something with a row; a failure of any row but the base is written down and the row dropped."""
        self.tell(self._progress(f"{name}: {doing}"))
        try:
            work(self.result.rows[name].row)
        except (RuntimeError, StackError) as error:
            if self.result.rows[name].row.role == "base":
                raise
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            self.result.rows[name].warnings.append(f"failed: {type(error).__name__}: {reason}")
            self.turns.drop(name)
            return False
        return True

    def take(self, row: Row, prompt: str, seed: int) -> None:
        """One timed picture."""
        self.result.rows[row.name].generations.append(self.engine.generate(row, prompt, seed))

    def add_controls(self, name: str, single: bool, prompt: str) -> None:
        """A whole stack has its first time: its controls join.

        A control gets at least as many steps as the stack's steps are worth, partial ones by what they computed: one
        disturbed timing must not give it fewer.
        """
        base, stack = self.result.rows[BASE], self.result.rows[name]
        fitting = steps_that_fit(stack.seconds[0], base.seconds[0], base.row.steps)
        steps = max(fitting, min(int(steps_worth(stack.generations[0].work)), base.row.steps))
        for control in controls_of(stack.row, steps, single, self.engine.multistep):
            self.expected -= 1
            self.result.rows[control.name] = Measured(control)
            self.turns.add(control.name)
            self.attempt(control.name, "warming up", lambda row: self.engine.warm_up(row, prompt))

    def _progress(self, text: str) -> Progress:
        names = self.turns.rows
        done = {name: len(self.result.rows[name].generations) for name in names}
        known = {name: t for name in names if (t := median(self.result.rows[name].seconds)) is not None}
        total = (len(names) + self.expected) * self.result.rounds
        left = None
        if known:
            # Rows not timed yet are taken to cost as much as the slowest: the estimate shrinks, it does not grow.
            slowest, quickest = max(known.values()), min(known.values())
            left = sum((self.result.rounds - done[name]) * known.get(name, slowest) for name in names)
            left += self.expected * self.result.rounds * quickest
        return Progress(sum(done.values()), total, text, left)
