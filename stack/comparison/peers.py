"""Caches of other libraries as rows of a comparison: cache-dit, and the hooks that diffusers brings.

Each runs on a copy of the denoiser that shares its weights, made anew for every picture: what a library changes on the
copy, and what it keeps from one picture to the next, goes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import nn

# Steps that run in full before anything is skipped, as in this package's caches by default.
WARM_UP = 3
# A careful and a bold setting of each: one alone would stand for the whole library.
THRESHOLDS, INTERVALS = (0.1, 0.3), (3, 5)


@dataclass(frozen=True)
class Peer:
    """A cache of another library in one setting.

    Attributes:
        name: of its row, with the setting.
        put: puts it on a denoiser that is called so many times per picture.
    """

    name: str
    put: Callable[[nn.Module, int], Any]


def peers() -> list[Peer]:
    """Those that are installed here: diffusers' are always, cache-dit's with the extra `bench`."""
    first_block = [Peer(f"diffusers first-block {t:g}", partial(_first_block, t)) for t in THRESHOLDS]
    taylor = [Peer(f"diffusers TaylorSeer every {n}", partial(_taylor, n)) for n in INTERVALS]
    found = [*first_block, *taylor]
    if find_spec("cache_dit") is not None:
        found += [Peer(f"cache-dit DBCache {t:g}", partial(_cache_dit, t)) for t in THRESHOLDS]
    return found


def _first_block(threshold: float, denoiser: Any, steps: int) -> None:
    from diffusers import FirstBlockCacheConfig

    denoiser.enable_cache(FirstBlockCacheConfig(threshold=threshold))


def _taylor(interval: int, denoiser: Any, steps: int) -> None:
    from diffusers import TaylorSeerCacheConfig

    denoiser.enable_cache(
        TaylorSeerCacheConfig(disable_cache_before_step=WARM_UP, cache_interval=interval, max_order=1)
    )


def _cache_dit(threshold: float, denoiser: nn.Module, steps: int) -> None:
    """Given the denoiser alone, cache-dit leaves the pipeline's class as it is; it would exchange its `__call__`."""
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=WARM_UP,
        num_inference_steps=steps,
    )  # fmt: skip
    cache_dit.enable_cache(denoiser, cache_config=config)
