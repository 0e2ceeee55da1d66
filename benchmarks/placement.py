"""Where a few-step solver's steps lie: the control of a searched cache, searched with the same effort. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Times = tuple[float, ...]  # unshifted times of the steps, falling from 1; the last step ends at 0
POWERS = (0.8, 1.25, 0.9, 1.1, 1.5)
SHIFTS = (1.3, 0.77, 1.6, 0.6)
MOVES = (0.3, -0.3, 0.12, -0.12)


@dataclass(frozen=True)
class Placed:
    """The best times, their score, and every trial in the order it was made."""

    best: Times
    score: float
    trials: tuple[tuple[Times, float], ...]


def warped(count: int, power: float) -> Times:
    """`count` times u_k = (1 - k / count)^power; 1 is uniform, above 1 is denser near the data."""
    return tuple((1 - k / count) ** power for k in range(count))


def shifted(times: Times, shift: float) -> Times:
    """Times pushed towards noise (shift > 1) or data, s u / (1 + (s - 1) u)."""
    return tuple(shift * u / (1 + (shift - 1) * u) for u in times)


def moved(times: Times, move: float) -> Iterator[Times]:
    """The placements that differ by one time, moved by this share of its distance to the next (later if positive)."""
    for k in range(1, len(times)):
        later = times[k + 1] if k + 1 < len(times) else 0.0
        goal = later if move > 0 else times[k - 1]
        yield (*times[:k], times[k] + abs(move) * (goal - times[k]), *times[k + 1 :])


def place(
    score: Callable[[Times], float],
    count: int,
    trials: int,
    on_trial: Callable[[Times, float], None] = lambda times, value: None,
) -> Placed:
    """Find `count` times with a high score, in at most `trials` calls of `score`.

    First uniform, then power laws, then shifts of the best of them, then single times moved as long as that helps.
    Never worse than uniform, and deterministic.
    """
    seen: dict[Times, float] = {}

    def best_of(candidates: Iterator[Times], best: Times) -> Times:
        for times in candidates:
            if len(seen) >= trials:
                break
            if times not in seen:
                seen[times] = score(times)
                on_trial(times, seen[times])
            if seen[times] > seen.get(best, float("-inf")):
                best = times
        return best

    best = best_of(iter((warped(count, 1.0),)), warped(count, 1.0))
    best = best_of((warped(count, power) for power in POWERS), best)
    if len(seen) < trials:
        start = best
        best = best_of((shifted(start, shift) for shift in SHIFTS), best)
    while len(seen) < trials:
        before = best
        for move in MOVES:
            best = best_of(moved(best, move), best)
        if best == before:
            break
    return Placed(best, seen[best], tuple(seen.items()))
