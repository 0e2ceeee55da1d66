"""The measuring loop: warm-up, then every row in turn, prompt after prompt; what is done survives an interruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..core.errors import StackError
from ..measure.timing import RoundRobin, median, steps_that_fit
from ..runtime.report import steps_worth
from .engine import Engine
from .rows import BASE, CONTROL, Measured, Row, controls_of, has_control, is_multistep, whole_stacks


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

    The base and the whole stacks take the first turns. Each row's control joins once the row has its first time, which
    says how many steps the control may take, and gets as many turns as everyone else. KeyboardInterrupt ends the loop
    and keeps what was measured. A row that fails while it runs (out of memory, an unsupported kernel, a pipeline that
    refuses its scheduler) says so in its warnings and takes no further turns.

    Raises:
        RuntimeError, StackError: the base itself fails.
    """
    single = len({row.recipe for row in rows if row.recipe}) <= 1
    own = [row for row in rows if not row.same_as]
    whole = whole_stacks(own)
    first = [row for row in own if row.role == "base"] + whole
    turns = RoundRobin([row.name for row in [*first, *(r for r in own if r not in first)]], len(prompts))
    loop = _Loop(engine, Measurement({row.name: Measured(row) for row in rows}, len(prompts)), turns, tell)
    loop.expected = {row.name: len(controls_of(row, 0, single, engine.multistep)) for row in own if has_control(row)}
    try:
        for name in turns.rows:
            loop.attempt(name, "warming up", lambda row: engine.warm_up(row, prompts[0]))
        for number, name in turns:
            doing = f"picture {number + 1} of {len(prompts)}"
            done = loop.attempt(name, doing, partial(loop.take, prompt=prompts[number], seed=seed + number))
            if number == 0 and done and name in loop.expected:
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
    expected: dict[str, int] = field(default_factory=dict)  # controls still to be added, by the row they are of

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
            self.expected.pop(name, None)
            return False
        return True

    def take(self, row: Row, prompt: str, seed: int) -> None:
        """One timed picture."""
        self.result.rows[row.name].generations.append(self.engine.generate(row, prompt, seed))

    def add_controls(self, name: str, single: bool, prompt: str) -> None:
        """A row has its first time: its controls join, or share the measurement of others with as many steps.

        The control of a row that skips steps gets at least as many as the row's steps are worth, partial ones by what
        they computed: one disturbed timing must not give it fewer.
        """
        base, row = self.result.rows[BASE], self.result.rows[name]
        fitting = steps_that_fit(row.seconds[0], base.seconds[0] * self.engine.pace, base.row.steps)
        worth = int(steps_worth(row.generations[0].work))
        steps = max(fitting, worth) if worth < base.row.steps else fitting
        for control in controls_of(row.row, steps, single, self.engine.multistep):
            self.expected[name] -= 1
            twin = None if row.row.group == "all" else self._of_as_many_steps(steps)
            self.result.rows[control.name] = Measured(replace(control, same_as=twin or ""))
            if twin is None:
                self.turns.add(control.name)
                self.attempt(control.name, "warming up", lambda row: self.engine.warm_up(row, prompt))

    def _of_as_many_steps(self, steps: int) -> str | None:
        """A control that walks this many steps with the base's scheduler, or the base where it runs like a control."""
        own = [BASE] if self.engine.pace == 1 else []
        plain = [m.row for m in self.result.rows.values() if m.row.name in own or m.row.role == CONTROL]
        fitting = [row.name for row in plain if row.steps == steps and not row.same_as and not is_multistep(row.name)]
        return fitting[0] if fitting else None

    def _progress(self, text: str) -> Progress:
        names = self.turns.rows
        done = {name: len(self.result.rows[name].generations) for name in names}
        known = {name: t for name in names if (t := median(self.result.rows[name].seconds)) is not None}
        expected = sum(self.expected.values())
        total = (len(names) + expected) * self.result.rounds
        left = None
        if known:
            # Rows not timed yet are taken to cost as much as the slowest: the estimate shrinks, it does not grow.
            slowest, quickest = max(known.values()), min(known.values())
            left = sum((self.result.rounds - done[name]) * known.get(name, slowest) for name in names)
            left += expected * self.result.rounds * quickest
        return Progress(sum(done.values()), total, text, left)
