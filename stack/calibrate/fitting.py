"""What a cache needs measured on the stack as it is before it can run: gates, linear maps, principal subspaces.

Each function runs the stack without its cache and puts what it found into the cache pass. If it fails, the stack is
left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..caching.bases import Bases
from ..caching.cache import Cache
from ..caching.fastcache.maps import LinearMaps
from ..caching.sites.fastcache import FastCacheSite
from ..caching.splits import ChannelSplit
from ..core.errors import StackError
from ..runtime.stack_like import StackLike
from . import bases_fit, gate_fit
from . import maps_fit as maps_fit
from .quant.floor import NoiseFloor


def _refit(stack: StackLike, suits: Callable[[Cache], bool], expected: str, fit: Callable[[Cache], Cache]) -> Cache:
    """Exchange the stack's cache for one that `fit` makes of it; it may put other passes in its place meanwhile.

    Raises:
        StackError: the stack has no cache that suits.
    """
    cache = next((p for p in stack.passes if isinstance(p, Cache)), None)
    if cache is None or not suits(cache) or stack.pipe is None:
        got = "a bare denoiser" if stack.pipe is None else f"a cache {cache.method!r}" if cache else "no cache"
        raise StackError(f"expected {expected}; got {got}")
    applied = stack.applied
    try:
        cache = fit(cache)
    finally:
        if not applied:
            stack.undo()
        stack.replace(cache)
    return cache


def fit_gate(stack: StackLike, prompts: Sequence[str], seed: int = 0) -> None:
    """Measure the ratios of MagCache, the polynomial of TeaCache, or the scale of an error budget's estimate.

    Raises:
        StackError: no such gate in the stack, no pipeline, or no prompts.
    """
    _refit(
        stack,
        lambda cache: cache.policy.gate is not None and bool(cache.policy.gate.fitted_by and prompts),
        "prompts and a pipeline with .cache('magcache'), .cache('teacache') or .cache(..., max_error=...)",
        lambda cache: gate_fit.fit_gate(stack, cache, prompts, seed),
    )


def tell_noise(stack: StackLike, floor: NoiseFloor) -> None:
    """Put the random part of a measured noise floor into the cache, if there is one: that of what it keeps."""
    cache = next((p for p in stack.passes if isinstance(p, Cache)), None)
    if cache is not None:
        stack.replace(cache.changed(noise=floor.at_site(cache.policy.site.noise_feature)))


def fit_maps(
    stack: StackLike,
    prompts: Sequence[str],
    seed: int = 0,
    ridge: float = 1e-3,
    rank: int = 0,
    save: str | Path | None = None,
    progress: bool = True,
) -> LinearMaps:
    """Fit FastCache's linear maps.

    Every prompt is run twice: once to sum up what each block does, once to measure what each map costs. The sums take
    2 D^2 numbers in float64 per block and stream.

    Args:
        prompts: 10 or more for maps that hold on others; each with its own seed from `seed` on.
        ridge: see `GramSums.solve`.
        rank: of every map; 0 is full.
        save: a safetensors file to write them to, for the option `maps` of a recipe beside it.

    Raises:
        StackError: no FastCache in the stack, no pipeline, or no prompts.
    """
    stream = stack.wiring.output_stream
    cache = _refit(
        stack,
        lambda cache: isinstance(cache.policy.site, FastCacheSite),
        "a pipeline with .cache('fastcache'): maps are fitted for FastCache only",
        lambda cache: cache.changed(maps=maps_fit.fit(stack, stream, prompts, seed, ridge, rank, progress)),
    )
    assert isinstance(cache.policy.site, FastCacheSite)
    maps = cache.policy.site.maps
    assert maps is not None
    if save is not None:
        maps.save(save)
    return maps


def fit_bases(stack: StackLike, prompts: Sequence[str], seed: int = 0, save: str | Path | None = None) -> Bases:
    """Find the principal subspaces of all that the cache predicts (SVD-Cache's offline variant).

    They take the place of those that each request finds in its first full step.

    Args:
        prompts: each with its own seed from `seed` on, run with every step full.
        save: a safetensors file to write them to, for the option `bases` of a recipe beside it.

    Raises:
        StackError: no cache with a principal subspace in the stack, no pipeline, or no prompts.
    """
    cache = _refit(
        stack,
        lambda cache: cache.policy.forecast.splits and isinstance(cache.policy.split, ChannelSplit) and bool(prompts),
        "prompts and a pipeline with a cache that has a principal subspace, such as .cache('svd')",
        lambda cache: cache.changed(bases=bases_fit.fit_bases(stack, cache, prompts, seed)),
    )
    bases = cache.policy.split.found
    assert bases is not None
    if save is not None:
        bases.save(save)
    return bases
