"""Fixed masks of computed steps for cache-dit: uniform, front-loaded, and its own built-in policies."""

from __future__ import annotations

from collections.abc import Sequence

from stack.caching.schedules import Interval

from .bench import WARMUP, interval_for

Mask = list[int]
POLICIES = ("fast", "ultra")  # the other two compute more than half of 50 steps


def uniform(full: int, steps: int) -> Mask:
    """Warm-up, then every n-th step: as our own interval schedules."""
    chosen = Interval(interval_for(full, steps), WARMUP).full_steps(steps)
    return [int(step in chosen) for step in range(steps)]


def growing(full: int, steps: int) -> Mask:
    """In the manner of cache-dit's "ultra": a head of four, then single steps with gaps that grow; exactly `full`."""
    head = min(4, full)
    singles = full - head
    weights = [k + 2 for k in range(singles)]
    ends = [head + round((steps - head) * sum(weights[: k + 1]) / sum(weights)) - 1 for k in range(singles)]
    chosen = {*range(head), *ends}
    return [int(step in chosen) for step in range(steps)]


def same_work(count: int, steps: int, share: float) -> int:
    """Full steps that leave, with cached ones that cost `share` of a full one, the work of `count`; 0 if none do."""
    full = round((count - steps * share) / (1 - share)) if share < 1 else 0
    return full if full >= WARMUP else 0


def masks(counts: Sequence[int], steps: int, share: float) -> dict[str, Mask]:
    """Every mask to try, by what it is called: at these counts, at their work, and cache-dit's policies."""
    tried = sorted({*counts, *(n for n in (same_work(count, steps, share) for count in counts) if n)})
    found = {f"uniform {n}": uniform(n, steps) for n in tried} | {f"growing {n}": growing(n, steps) for n in tried}
    return found | built_in(steps)


def built_in(steps: int) -> dict[str, Mask]:
    """cache-dit's own policies, where the installed version has them."""
    import cache_dit

    if "steps_mask" not in vars(cache_dit):
        return {}
    return {policy: cache_dit.steps_mask(total_steps=steps, mask_policy=policy) for policy in POLICIES}
