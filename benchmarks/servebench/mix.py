"""What is asked of a server: requests of every kind in a random order. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

WHOLE, RAISES, ABORTS, DEEP, TURNED = "whole", "callback raises", "caller aborts", "out of memory", "weights edited"
BROKEN = (RAISES, ABORTS, DEEP)
ADAPTERS = ("one", "two")


@dataclass(frozen=True)
class Request:
    """One call of the pipeline.

    Attributes:
        size: of the pictures, in pixels; 0 is the pipeline's own.
        edited: after this step the weights are doubled in one place until the request is over; -1 is never.
    """

    prompts: tuple[str, ...]
    seed: int
    steps: int
    size: int = 0
    edited: int = -1


@dataclass(frozen=True)
class Job:
    """A request, and what becomes of it.

    Attributes:
        kind: "whole", or how it breaks off.
        after: the step behind which it does.
    """

    request: Request
    kind: str = WHOLE
    after: int = 0


@dataclass(frozen=True)
class Phase:
    """Jobs that are served together.

    Attributes:
        how: "in turn", "threads", "asyncio".
        workers: at a time.
        adapter: exchanged before the first of them.
        scaled: a weight is doubled before the first and halved after the last.
    """

    how: str
    workers: int
    jobs: tuple[Job, ...]
    adapter: str
    scaled: bool = False


def draw_phases(
    count: int, prompts: Sequence[str], steps: Sequence[int], sizes: Sequence[int], pool: int, seed: int = 0
) -> list[Phase]:
    """Phases of at least `count` jobs in all; their whole requests come from a pool, so that each is drawn afresh once.

    Args:
        pool: different requests.
    """
    rng = random.Random(seed)
    known = [_request(rng, prompts, steps, sizes) for _ in range(pool)]
    phases: list[Phase] = []
    while sum(len(phase.jobs) for phase in phases) < count:
        how = rng.choice(("in turn", "in turn", "threads", "asyncio"))
        workers = 1 if how == "in turn" else rng.randint(2, 4)
        jobs = tuple(_job(rng, known, prompts, steps, sizes, how) for _ in range(rng.randint(5, 10)))
        phases.append(Phase(how, workers, jobs, rng.choice(ADAPTERS), scaled=rng.random() < 0.2))
    return phases


def _request(rng: random.Random, prompts: Sequence[str], steps: Sequence[int], sizes: Sequence[int]) -> Request:
    asked = tuple(rng.choices(prompts, k=rng.choice((1, 1, 2))))
    return Request(asked, rng.randrange(1000), rng.choice(steps), rng.choice(sizes))


def _job(
    rng: random.Random, known: Sequence[Request], prompts: Sequence[str], steps: Sequence[int], sizes: Sequence[int],
    how: str,
) -> Job:  # fmt: skip
    if rng.random() < 0.3:
        request = _request(rng, prompts, steps, sizes)
        # Ctrl-C reaches the main thread only.
        kind = rng.choice(BROKEN if how == "in turn" else (RAISES, DEEP))
        return Job(request, kind, rng.randrange(request.steps - 1))
    request = rng.choice(known)
    # An edit is seen by everybody who draws at that time.
    if how == "in turn" and rng.random() < 0.15:
        edited = Request(request.prompts, request.seed, request.steps, request.size, edited=request.steps // 2)
        return Job(edited, TURNED)
    return Job(request)
