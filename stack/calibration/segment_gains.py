"""One gain per run of cached steps: a damped Gauss-Newton step on finished pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..caching.candidate import Candidate

NUDGE = 0.2  # how far a gain is moved to see what it does: large against rounding, small against 1
DAMPING = 0.3  # as a share of the squared error: undamped, gains far from 1 cancel each other on these prompts only


def refinable(candidate: Candidate) -> bool:
    """Whether gains per run of cached steps are worth fitting: of a higher order, each would scale several terms."""
    return candidate.order == 1


def nudged(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with one segment's gain raised, last segment first: it shares most with the run before.

    The first segment is left out: nothing is extrapolated there yet.
    """
    own = candidate.segments or (1.0,) * len(candidate.full_steps)
    for index in range(len(own) - 1, 0, -1):
        yield replace(candidate, segments=tuple(g + NUDGE * (i == index) for i, g in enumerate(own)))


def step(error: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """Changes d (K,) of the gains that make |error + responses d|^2 + damping least.

    Args:
        error: (P,) of the pictures.
        responses: (P, K) change of the pictures per unit of each gain.
    """
    error, responses = error.double(), responses.double()
    count = responses.shape[1]
    pull = DAMPING * error.square().sum() / count * torch.eye(count, dtype=torch.float64, device=error.device)
    return torch.linalg.solve(responses.mT @ responses + pull, -responses.mT @ error)


def refined(best: Candidate, pictures: Callable[[Candidate], torch.Tensor], target: torch.Tensor) -> Candidate:
    """The candidate with the gains that a linear model of the pictures recommends; one run per segment."""
    base = pictures(best)
    changes = [(pictures(other) - base).flatten() / NUDGE for other in nudged(best)]
    found = step((base - target).flatten(), torch.stack(changes, 1)).flip(0)
    own = best.segments or (1.0,) * len(best.full_steps)
    moved = (own[0], *(gain + change for gain, change in zip(own[1:], found.tolist(), strict=True)))
    return replace(best, segments=tuple(round(gain, 3) for gain in moved))
