"""Which steps are full: a search over schedules and gains. Pure: it only ever asks a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Gain = tuple[float, float]
# (principal, residual): the published split, its neighbours, and both parts alike (where the split buys nothing).
GAINS: tuple[Gain, ...] = ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (0.8, 0.4), (0.8, 0.8), (0.9, 0.9))
MOVES = (1, -1, 2, -2, 4, -4)


@dataclass(frozen=True)
class Candidate:
    """A schedule and the gains that go with it."""

    full_steps: tuple[int, ...]
    gains: Gain


@dataclass(frozen=True)
class Found:
    """The best candidate, its score, and every trial in the order it was made."""

    best: Candidate
    score: float
    trials: tuple[tuple[Candidate, float], ...]


def spread(count: int, steps: int, power: float) -> tuple[int, ...]:
    """`count` full steps from 0, spaced as k ** power: 1 is uniform, above 1 is denser at the noisy start."""
    last = steps - max(1, steps // (2 * count))  # a full step at the very end would have nothing to serve
    ideal = [last * (k / max(1, count - 1)) ** power for k in range(count)]
    places: list[int] = []
    for x in ideal:
        places.append(min(max(round(x), places[-1] + 1 if places else 0), steps - 1))
    return tuple(dict.fromkeys(places))


def neighbours(full: tuple[int, ...], steps: int, moves: tuple[int, ...] = MOVES) -> Iterator[tuple[int, ...]]:
    """The schedules that differ from `full` by one full step moved; step 0 stays."""
    for move in moves:
        for place in full[1:]:
            target = place + move
            if 0 < target < steps and target not in full:
                yield tuple(sorted((set(full) - {place}) | {target}))


def search(
    score: Callable[[Candidate], float],
    count: int,
    steps: int,
    trials: int,
    on_trial: Callable[[Candidate, float], None] = lambda candidate, value: None,
    propose: Callable[[Sequence[tuple[Candidate, float]]], Candidate | None] | None = None,
    time_left: Callable[[], bool] = lambda: True,
) -> Found:
    """Find `count` full steps of `steps` and gains with a high score, in at most `trials` calls of `score`.

    First the uniform spread; then what is proposed, or if nobody proposes the gains on the uniform spread and spreads
    that lean to the start; then one full step at a time (a move that helps is kept, and the same step is tried next),
    and the gains again at the end. Deterministic as long as there is time.

    Args:
        propose: given the trials so far, the next candidate, or None when it has no more to propose.
        time_left: asked before every trial but the first.
    """
    seen: dict[Candidate, float] = {}

    def ask(candidate: Candidate) -> float:
        if candidate not in seen:
            seen[candidate] = score(candidate)
            on_trial(candidate, seen[candidate])
        return seen[candidate]

    def keep_best(candidates: Iterator[Candidate], best: Candidate, limit: int) -> Candidate:
        for candidate in candidates:
            if len(seen) >= limit or not time_left():
                break
            if ask(candidate) > ask(best):
                best = candidate
        return best

    reserve = len(GAINS) if trials > 4 * len(GAINS) else 0
    start = spread(count, steps, 1.0)
    best = Candidate(start, GAINS[0])
    ask(best)
    if propose:
        best = keep_best(iter(lambda: propose(tuple(seen.items())), None), best, trials)
    else:
        best = keep_best((Candidate(start, gains) for gains in GAINS), best, trials)
        leaning = (Candidate(spread(count, steps, p), best.gains) for p in (1.2, 1.4, 1.6, 0.85))
        best = keep_best(leaning, best, trials)
    while len(seen) < trials - reserve and time_left():
        before = best
        for move in MOVES:
            options = (Candidate(f, best.gains) for f in neighbours(best.full_steps, steps, (move,)))
            best = keep_best(options, best, trials - reserve)
        if best == before:
            break
    best = keep_best((Candidate(best.full_steps, gains) for gains in GAINS), best, trials)
    return Found(best, ask(best), tuple(seen.items()))
