"""Measurements on a stack, whose results go back into its passes: the methods of `Stack` that take minutes.

Each function holds the stack's lock: one measurement or call goes on at a time. `call` are further arguments of every
call of the pipeline (an image, a size, a negative prompt, ...), see `stack.runtime.pipeline_calls.PipelineCalls`. A
single text is taken as a list of one. `progress` shows one line on stderr. Ctrl-C leaves the stack as it was, or, where
a calibration has found something better, with that.
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
from ..core.files import check_file
from ..core.progress import ProgressLine
from ..core.validate import Seed, checked, prompts_of, some_prompts
from ..models.denoiser import one_denoiser
from ..runtime.call_arguments import Call
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import AnyStack, StackLike
from . import bases_fit, gate_fit, maps_fit
from .calibrate import calibrate as search_cache
from .calibration import Calibration
from .goals import Goal
from .quant.floor import NoiseFloor, dependencies, measure_floor
from .time_budget import SearchBudget

FLOOR = "noise floor"  # its key among `StackLike.analyses`


def calibrate(
    stack: StackLike,
    prompts: Sequence[str],
    held_out: Sequence[str],
    full_steps: int = 0,
    min_psnr: float = 0.0,
    max_seconds: float = 0.0,
    seed: int = 0,
    trials: int = 60,
    budget: float = 60.0,
    progress: bool = True,
    call: Call | None = None,
    learn: str | None = None,
) -> Calibration:
    """Search the cache's full steps and forecast on finished pictures, check them on other prompts, keep the best.

    Runs on the stack as it is: quantized, sparse, distilled. The result is in the stack's cache pass afterwards.

    Args:
        prompts: at least two, better four or more, each with its own seed from `seed` on.
        held_out: other prompts. Their PSNR is reported; they have a say only where it is 3 dB lower, see
            `Calibration.compared`.
        full_steps, min_psnr, max_seconds: what to reach, see `stack.calibration.goals.Goal`; one of them, or none for
            as many full steps as the cache has now.
        trials: runs of the whole batch of prompts to spend.
        budget: seconds to spend, the check on held-out prompts included.
        learn: what is learnt from the recorded runs on top of the schedule, for a cache with a corrector: "l2p" or
            "low-rank" (`stack.caching.learned`), "off" for nothing. None is "low-rank", the better of the two alone. It
            is kept if it wins on the held-out prompts. A recipe can only name its file:
            `found.cache.policy.learned.save(...)`, then `cache(..., learned=...)`.

    Raises:
        StackError: see `stack.calibration.calibrate.calibrate`.
    """
    searched, held = prompts_of(prompts), prompts_of(held_out, "held_out")
    checked(Seed, seed, "seed")
    with stack.lock:
        goal, spend = Goal(full_steps, min_psnr, max_seconds), SearchBudget(trials, budget)
        return search_cache(stack, searched, held, goal, seed, spend, progress, call, learn)


def noise_floor(
    stack: StackLike,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 6,
    neighbours: int = 4,
    progress: bool = True,
    call: Call | None = None,
) -> NoiseFloor:
    """Measure what quantization and sparse attention add to one forward pass; see
    `stack.calibration.quant.floor.measure_floor`.

    The random part is put into the stack's cache, which then forecasts no further than what stands out of it.
    """
    checked(Seed, seed, "seed")
    with stack.lock:
        found = measure_floor(stack, prompts, seed, steps, neighbours, progress, call=call)
        stack.analyses[FLOOR] = found
        cache = next((p for p in stack.passes if isinstance(p, Cache)), None)
        if cache is not None:
            stack.replace(cache.changed(noise=found.at_site(cache.policy.site.noise_feature)))
        return found


def floor_of(stack: StackLike) -> NoiseFloor | None:
    """The noise floor as last measured; None where there is none, or where what it depends on has changed."""
    found: NoiseFloor | None = stack.analyses.get(FLOOR)
    return found if found and found.depends == dependencies(stack) else None


def fit_gate(
    stack: AnyStack, prompts: Sequence[str], seed: int = 0, progress: bool = True, call: Call | None = None
) -> AnyStack:
    """Measure the ratios of MagCache, the polynomial of TeaCache, or the scale of an error budget's estimate.

    Raises:
        StackError: no such gate in the stack, no pipeline, or no prompts.
    """
    texts, calls = some_prompts(prompts), PipelineCalls(stack.pipe, call)
    checked(Seed, seed, "seed")
    with stack.lock, ProgressLine("fit_gate", progress) as bar:
        _refit(
            stack,
            lambda cache: cache.policy.gate is not None and bool(cache.policy.gate.fitted_by),
            "a pipeline with .cache('magcache'), .cache('teacache') or .cache(..., max_error=...)",
            lambda cache: gate_fit.fit_gate(stack, cache, texts, seed, calls, bar),
        )
        return stack


def fit_maps(
    stack: StackLike,
    prompts: Sequence[str],
    seed: int = 0,
    ridge: float = 1e-3,
    rank: int = 0,
    save: str | Path | None = None,
    progress: bool = True,
    call: Call | None = None,
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
        StackError: no FastCache in the stack, no pipeline, or one with two denoisers, or no prompts.
    """
    texts, calls = some_prompts(prompts), PipelineCalls(stack.pipe, call)
    checked(Seed, seed, "seed")
    if save is not None:
        check_file(Path(save), "save")
    with stack.lock, ProgressLine("fit_maps", progress) as bar:
        cache = _refit(
            stack,
            _has_maps,
            "a pipeline with .cache('fastcache-published-gate') or another FastCache that replaces blocks by maps",
            lambda cache: cache.changed(maps=maps_fit.fit(stack, texts, seed, ridge, rank, calls, bar)),
            "fit_maps()",
        )
        assert isinstance(cache.policy.site, FastCacheSite)
        maps = cache.policy.site.maps
        assert maps is not None
        if save is not None:
            maps.save(save)
        return maps


def fit_bases(
    stack: StackLike,
    prompts: Sequence[str],
    seed: int = 0,
    save: str | Path | None = None,
    progress: bool = True,
    call: Call | None = None,
) -> Bases:
    """Find the principal subspaces of all that the cache predicts (SVD-Cache's offline variant).

    They take the place of those that each request finds in its first full step.

    Args:
        prompts: each with its own seed from `seed` on, run with every step full.
        save: a safetensors file to write them to, for the option `bases` of a recipe beside it.

    Raises:
        StackError: no cache with a principal subspace in the stack, no pipeline, or one with two denoisers, or no
            prompts.
    """
    texts, calls = some_prompts(prompts), PipelineCalls(stack.pipe, call)
    checked(Seed, seed, "seed")
    if save is not None:
        check_file(Path(save), "save")
    with stack.lock, ProgressLine("fit_bases", progress) as bar:
        cache = _refit(
            stack,
            _has_subspace,
            "a pipeline with a cache that has a principal subspace, such as .cache('svd-published')",
            lambda cache: cache.changed(bases=bases_fit.fit_bases(stack, cache, texts, seed, calls, bar)),
            "fit_bases()",
        )
        bases = cache.policy.split.found
        assert bases is not None
        if save is not None:
            bases.save(save)
        return bases


def _refit(
    stack: StackLike, suits: Callable[[Cache], bool], expected: str, fit: Callable[[Cache], Cache], alone: str = ""
) -> Cache:
    """Exchange the stack's cache for one that `fit` makes of it; it may put other passes in its place meanwhile.

    Args:
        alone: what measures one denoiser only, as its user calls it; "" for what measures all of a pipeline.

    Raises:
        StackError: the stack has no cache that suits, or what measures one denoiser meets two.
    """
    cache = next((p for p in stack.passes if isinstance(p, Cache)), None)
    if cache is None or not suits(cache) or stack.pipe is None:
        got = "a bare denoiser" if stack.pipe is None else f"a cache {cache.method!r}" if cache else "no cache"
        raise StackError(f"expected {expected}; got {got}")
    if alone:
        one_denoiser(stack.pipe, alone)
    applied = stack.applied
    try:
        cache = fit(cache)
    finally:
        if not applied:
            stack.undo()
        stack.replace(cache)
    return cache


def _has_maps(cache: Cache) -> bool:
    """Whether blocks or tokens are replaced by fitted maps."""
    return isinstance(cache.policy.site, FastCacheSite) and cache.policy.site.needs_maps


def _has_subspace(cache: Cache) -> bool:
    """Whether its forecasts treat a principal subspace of the channels apart."""
    return cache.policy.forecast.splits and isinstance(cache.policy.split, ChannelSplit)
