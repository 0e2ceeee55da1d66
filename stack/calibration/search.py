"""Which steps are full, and what is forecast between them: a search that only ever asks a score. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ..caching.candidate import PUBLISHED, Candidate, Gain
from ..caching.noise_schedule import Levels, best_places
from ..caching.schedules import dense_end

# (principal, residual), line by line: from the whole feature towards the published split, and towards reuse.
GAINS: tuple[tuple[Gain, ...], ...] = (((1.0, 0.5), PUBLISHED), ((0.9, 0.9), (0.8, 0.8)), ((0.8, 0.4),))
MOVES = (1, -1, 2, -2, 4, -4)
DENSE = (2.0, 2.5, 1.5, 3.0)  # powers of spreads dense near the data, likeliest first
EARLY = (1.9, 1.6, 2.2)  # of spreads for pictures whose layout is decided by the first few steps
STRENGTHS = (2.5, 5.5, 4.0, 1.5, 7.0)  # log variances of the strongest mode, see `best_places`

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


def through(full: tuple[int, ...], always: Sequence[int]) -> tuple[int, ...]:
    """The schedule with the steps that are always full among its own: for each that is missing the nearest is moved."""
    for step in always:
        free = [place for place in full[1:] if place not in always]
        if step not in full:
            moved = min(free, key=lambda place: abs(place - step), default=None)
            full = tuple(sorted({*full, step} - {moved}))
    return full


def one_more(full: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """The schedule with one full step more, in the middle of its longest run of other steps."""
    gaps = list(pairwise((*full, steps)))
    start, stop = max(gaps, key=lambda gap: gap[1] - gap[0])
    return tuple(sorted({*full, (start + stop) // 2}))


def one_fewer(full: tuple[int, ...], steps: int, always: Sequence[int] = ()) -> tuple[int, ...]:
    """The schedule without the full step whose neighbours are nearest; step 0 and those always full stay."""
    around = {at: after - before for before, at, after in zip(full, full[1:], (*full[2:], steps), strict=False)}
    free = [step for step in around if step not in always]
    return tuple(step for step in full if not free or step != min(free, key=lambda one: around[one]))


def neighbours(
    full: tuple[int, ...], steps: int, moves: tuple[int, ...] = MOVES, always: Sequence[int] = ()
) -> Iterator[tuple[int, ...]]:
    """The schedules that differ from `full` by one full step moved; step 0 and those that are always full stay. Late
    steps first: a trial that shares its beginning with the best one is cheaper."""
    for move in moves:
        for place in reversed(full[1:]):
            target = place + move
            if 0 < target < steps and target not in full and place not in always:
                yield tuple(sorted((set(full) - {place}) | {target}))


def openings(template: Candidate, steps: int, always: Sequence[int] = (), levels: Levels = ()) -> list[list[Candidate]]:
    """Schedules to begin a search with, family by family: by noise level, dense near the data, dense at the start.

    Args:
        always: see `search`.
        levels: of the request; without them nothing is placed by noise level.
    """
    count = len(template.full_steps)
    order, corrected = min(template.order, 1), template.corrected
    families = [
        [best_places(count, tuple(levels), order, corrected, strongest=v) for v in STRENGTHS] if levels else [],
        [dense_end(count, steps, power) for power in DENSE],
        [spread(count, steps, power) for power in EARLY],
    ]
    made = [[replace(template, full_steps=through(full, always)) for full in family] for family in families if family]
    return [list(dict.fromkeys(family)) for family in made]


def forecasts(
    best: Candidate, coordinates: Sequence[str] = (), correctable: bool = False
) -> list[list[dict[str, Any]]]:
    """Other forecasts on the same full steps, as changes, line by line; a line goes on while it helps.

    Args:
        coordinates: those worth trying.
        correctable: whether a corrector can be used.
    """
    lines: list[list[dict[str, Any]]] = [[{"corrected": not best.corrected}]] if correctable else []
    lines += [[{"coordinate": name}] for name in coordinates]
    return [*lines, [{"order": best.order + 1}], *([{"gains": gains} for gains in line] for line in GAINS)]


def energies(best: Candidate) -> list[Candidate]:
    """Larger principal parts, where principal part and residual are treated differently at all."""
    return [replace(best, energy=e) for e in (0.95, 0.99)] if best.gains[0] != best.gains[1] else []


def search(
    scored: Scored,
    start: Candidate,
    steps: int,
    coordinates: Sequence[str] = (),
    enough: Callable[[], bool] = lambda: False,
    varied: bool = True,
    families: Sequence[Sequence[Candidate]] = (),
    correctable: bool = False,
    always: Sequence[int] = (),
) -> Found:
    """Find full steps and a forecast with a high score.

    First `start`; then the families; then other forecasts on the best full steps; then one full step at a time: a move
    that helps is kept, and all are tried again until none does. Deterministic as long as there is time.

    Args:
        coordinates: of forecasts, those worth trying.
        enough: asked before every round of moves.
        varied: whether to try other forecasts; not for a cache that is defined by its own.
        families: the first of each is tried, then the rest of the best one's.
        correctable: whether corrected candidates may be tried.
        always: steps beside the first that are full whatever is tried; those of the candidates given are, too.
    """
    scored.better(start)
    _open(scored, families)
    if varied:
        _vary(scored, coordinates, correctable)
    moved = True
    while moved and not enough() and not scored.spent:
        moved = _move(scored, steps, always)
    if varied:
        scored.follow(energies(scored.found().best))
    return scored.found()


def _open(scored: Scored, families: Sequence[Sequence[Candidate]]) -> None:
    """Try the first of every family, then all of the family that holds the best candidate so far."""
    for family in families:
        scored.better(family[0])
    best = next((family for family in families if scored.best in family), [])
    for candidate in best:
        scored.better(candidate)


def _vary(scored: Scored, coordinates: Sequence[str], correctable: bool) -> None:
    best = scored.found().best
    others = [name for name in coordinates if name != best.coordinate]
    for line in forecasts(best, others, correctable):
        now = scored.found().best  # what earlier lines gained is kept
        scored.follow(replace(now, **change) for change in line)


def _move(scored: Scored, steps: int, always: Sequence[int]) -> bool:
    moved = False
    for move in MOVES:
        best = scored.found().best
        for full in neighbours(best.full_steps, steps, (move,), always):
            moved |= scored.better(replace(best, full_steps=full))
    return moved
