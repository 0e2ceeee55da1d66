"""What a stack's cache measures on the stack as it is, without itself: gates' scales and linear maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .caching.calibration.gate_fit import fit_gate
from .caching.fastcache.fit import fit
from .caching.fastcache.maps import LinearMaps
from .errors import StackError
from .models.wiring import wiring_of
from .passes.cache import Cache


def _cache_of(stack: Any) -> Cache | None:
    return next((p for p in stack.passes if isinstance(p, Cache)), None)


def fit_gate_of(stack: Any, prompts: Sequence[str], seed: int) -> Any:
    """See `Stack.fit_gate`."""
    cache, applied = _cache_of(stack), stack.applied
    if cache is None or cache.policy.gate not in ("magnitude", "polynomial") or not prompts or not stack.pipe:
        raise StackError("expected prompts and a pipeline with .cache('magcache') or .cache('teacache')")
    try:
        cache = fit_gate(stack, cache, prompts, seed)
    finally:
        if not applied:
            stack.undo()
        stack.replace(cache)
    return stack


def fit_maps_of(
    stack: Any, prompts: Sequence[str], seed: int, ridge: float, rank: int, save: str | Path | None, progress: bool
) -> LinearMaps:
    """See `Stack.fit_maps`."""
    cache, applied = _cache_of(stack), stack.applied
    if cache is None or cache.policy.site != "fastcache":
        raise StackError("maps are fitted for FastCache only: add .cache('fastcache')")
    try:
        stream = wiring_of(stack.denoiser).output_stream
        maps = fit(stack, stream, prompts, seed, ridge, rank, progress)
        cache = cache.changed(maps=maps)
    finally:
        if not applied:
            stack.undo()
        stack.replace(cache)
    if save is not None:
        maps.save(save)
    return maps
