"""Which steps are full, and what is forecast between them: a search that only ever asks a score. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

Gain = tuple[float, float]
PUBLISHED, WHOLE = (1.0, 0.0), (1.0, 1.0)
# (principal, residual), line by line: from the whole feature towards the published split, and towards reuse.
GAINS: tuple[tuple[Gain, ...], ...] = (((1.0, 0.5), PUBLISHED), ((0.9, 0.9), (0.8, 0.8)), ((0.8, 0.4),))
MOVES = (1, -1, 2, -2, 4, -4)
LEANING = (1.2, 1.4, 1.6, 0.85)
EARLY = (1.6, 1.9, 2.2)  # powers of spreads for pictures whose layout is decided by the first few steps


@dataclass(frozen=True)
class Candidate:
    """A schedule, and the forecast that goes with it.

    Attributes:
        full_steps: step 0 first.
        gains, order, coordinate, energy: see `stack.caching.forecast.Forecast` and `stack.caching.splits.ChannelBasis`.
        segments: a factor on the gains per full step; empty is 1 throughout.
    """

    full_steps: tuple[int, ...]
    gains: Gain = WHOLE
    order: int = 1
    coordinate: str = "time"
    energy: float = 0.85
    segments: tuple[float, ...] = ()


Tried = Sequence[tuple[Candidate, float]]


@dataclass(frozen=True)
class Found:
    """The best candidate, its score, and every trial in the order it was made."""

    best: Candidate
    score: float
    trials: tuple[tuple[Candidate, float], ...]


class Scored:
    """Asks each candidate's score once, keeps the best, and stops asking when the budget is spent.

    Args:
        trials: how many candidates may be asked for.
        time_left: asked before every trial but the first.
    """

    def __init__(
        self,
        score: Callable[[Candidate], float],
        trials: int,
        time_left: Callable[[], bool] = lambda: True,
        on_trial: Callable[[Candidate, float], None] = lambda candidate, value: None,
    ):
        self._score, self._trials, self._time_left, self._on_trial = score, trials, time_left, on_trial
        self.seen: dict[Candidate, float] = {}
        self.best: Candidate | None = None

    @property
    def spent(self) -> bool:
        """Whether no further candidate will be asked for."""
        return bool(self.seen) and (len(self.seen) >= self._trials or not self._time_left())

    def better(self, candidate: Candidate) -> bool:
        """Whether this candidate beats the best so far, and then is the best."""
        if candidate not in self.seen:
            if self.spent:
                return False
            self.seen[candidate] = self._score(candidate)
            self._on_trial(candidate, self.seen[candidate])
        if self.best is None or self.seen[candidate] > self.seen[self.best]:
            self.best = candidate
            return True
        return False

    def follow(self, line: Iterable[Candidate]) -> bool:
        """Try candidates as long as each beats the one before; whether any did."""
        gained = False
        for candidate in line:
            if not self.better(candidate):
                break
            gained = True
        return gained

    def found(self) -> Found:
        """What came of it."""
        assert self.best is not None, "nothing was tried"
        return Found(self.best, self.seen[self.best], tuple(self.seen.items()))


def spread(count: int, steps: int, power: float) -> tuple[int, ...]:
    """`count` full steps from 0, spaced as k ** power: 1 is uniform, above 1 is denser at the noisy start."""
    last = steps - max(1, steps // (2 * count))  # a full step at the very end would have nothing to serve
    ideal = [last * (k / max(1, count - 1)) ** power for k in range(count)]
    places: list[int] = []
    for x in ideal:
        places.append(min(max(round(x), places[-1] + 1 if places else 0), steps - 1))
    return tuple(dict.fromkeys(places))


def dense_end(count: int, steps: int, power: float) -> tuple[int, ...]:
    """`count` full steps from 0 at times (1 - k / count) ** power: the larger the power, the denser near the data."""
    places = [0]
    for k in range(1, count):
        ideal = round(steps * (1 - (1 - k / count) ** power))
        places.append(min(max(ideal, places[-1] + 1), steps - count + k))
    return tuple(places)


def neighbours(full: tuple[int, ...], steps: int, moves: tuple[int, ...] = MOVES) -> Iterator[tuple[int, ...]]:
    """The schedules that differ from `full` by one full step moved; step 0 stays. Late steps first: a trial that
    shares its beginning with the best one is cheaper."""
    for move in moves:
        for place in reversed(full[1:]):
            target = place + move
            if 0 < target < steps and target not in full:
                yield tuple(sorted((set(full) - {place}) | {target}))


def forecasts(best: Candidate, coordinates: Sequence[str] = ()) -> list[list[dict[str, Any]]]:
    """Other forecasts on the same full steps, as changes, line by line; a line goes on while it helps.

    Args:
        coordinates: those worth trying.
    """
    lines: list[list[dict[str, Any]]] = [[{"coordinate": name}] for name in coordinates]
    return [*lines, [{"order": best.order + 1}], *([{"gains": gains} for gains in line] for line in GAINS)]


def energies(best: Candidate) -> list[Candidate]:
    """Larger principal parts, where principal part and residual are treated differently at all."""
    return [replace(best, energy=e) for e in (0.95, 0.99)] if best.gains[0] != best.gains[1] else []


def search(
    scored: Scored,
    start: Candidate,
    steps: int,
    propose: Callable[[Tried], Candidate | None] | None = None,
    coordinates: Callable[[Candidate], Sequence[str]] = lambda best: (),
    enough: Callable[[], bool] = lambda: False,
    varied: bool = True,
    spreads: Sequence[tuple[int, ...]] = (),
) -> Found:
    """Find full steps and a forecast with a high score.

    First `start`; then what is proposed, or if nobody proposes, spreads that lean to one end; then other forecasts on
    the best full steps; then one full step at a time: a move that helps is kept, and all are tried again until none
    does. Deterministic as long as there is time.

    Args:
        propose: given the trials so far, the next candidate, or None when it has no more to propose.
        coordinates: given the best candidate, the coordinates worth trying on it.
        enough: asked before every round of moves.
        spreads: full steps to try first where nobody proposes; by default spreads that lean to one end.
        varied: whether to try other forecasts; not for a cache that is defined by its own.
    """
    scored.better(start)
    if propose:
        while not scored.spent and (candidate := propose(tuple(scored.seen.items()))):
            scored.better(candidate)
    else:
        for full in spreads or [spread(len(start.full_steps), steps, power) for power in LEANING]:
            scored.better(replace(start, full_steps=full))
    if varied:
        _vary(scored, coordinates)
    moved = True
    while moved and not enough() and not scored.spent:
        moved = _move(scored, steps)
    if varied:
        scored.follow(energies(scored.found().best))
    return scored.found()


def _vary(scored: Scored, coordinates: Callable[[Candidate], Sequence[str]]) -> None:
    best = scored.found().best
    for line in forecasts(best, coordinates(best)):
        now = scored.found().best  # what earlier lines gained is kept
        scored.follow(replace(now, **change) for change in line)


def _move(scored: Scored, steps: int) -> bool:
    moved = False
    for move in MOVES:
        best = scored.found().best
        for full in neighbours(best.full_steps, steps, (move,)):
            moved |= scored.better(replace(best, full_steps=full))
    return moved
