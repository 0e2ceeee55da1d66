"""The flux and large parts: FLUX.1-dev's shape at 1,024 and at 2,048 pixels, most telling rows first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from cachebench.rivals import put_cache_dit

from stack import Stack
from stack.caching.methods import PRESETS
from stack.caching.schedules import Interval

from .model import Flux
from .runner import Row
from .setting import Setting
from .whole import Whole, measure

CACHE = "predictor-corrector"
HEADLINE = "fp8 + compiled + cuDNN + cache"
AT_28 = f"{HEADLINE}, 28 steps"
OTHER_CACHES = ("first-block", "taylorseer-lite", "svd-published-blocks")
FEW = 10  # steps of a request where all are alike and the row is no base
SPARSE_STEPS = 6


def flux_rows(setting: Setting) -> Iterator[Row]:
    """1,024 x 1,024 pixels: 4,096 image and 512 text tokens."""
    return _rows("flux", setting, setting.either(1024, 128), wholes(setting))


def large_rows(setting: Setting) -> Iterator[Row]:
    """2,048 x 2,048 pixels: 16,384 image and 512 text tokens, where attention is half of the work."""
    return _rows("large", setting, setting.either(2048, 256), large_wholes(setting))


def _rows(part: str, setting: Setting, size: int, ways: list[Whole]) -> Iterator[Row]:
    flux = Flux(setting)
    return (Row(part, way.name, way.seconds, partial(measure, way, flux, size), late=way.late) for way in ways)


def wholes(setting: Setting) -> list[Whole]:
    """The rows of the flux part."""
    fp8 = quantized_to_fp8(setting)
    return [
        Whole("base, eager", 25, base="eager"),
        Whole("compiled", 60, compiled=True, base="compiled"),
        Whole("compiled + cuDNN", 50, compiled=True, attention="cuDNN", base="compiled"),
        Whole(HEADLINE, 45, lambda s: fp8(s).cache(CACHE), compiled=True, attention="cuDNN"),
        Whole(AT_28, 35, lambda s: fp8(s).cache(CACHE), steps=28, compiled=True, attention="cuDNN"),
        Whole("cache", 15, lambda s: s.cache(CACHE)),
        Whole("fp8 + compiled", 40, fp8, FEW, compiled=True),
        Whole("fp8 + compiled + cuDNN", 40, fp8, FEW, compiled=True, attention="cuDNN"),
        Whole("compiled + cache", 35, lambda s: s.cache(CACHE), compiled=True),
        Whole("compiled + svd", 35, lambda s: s.cache("svd"), compiled=True),
        Whole("cache-dit F1B0, Taylor 1", 20, rival=cache_dit, full=lambda steps: len(even_steps(steps))),
        Whole(
            "compiled + cuDNN + cache-dit F1B0, Taylor 1", 50, compiled=True, attention="cuDNN", rival=cache_dit,
            full=lambda steps: len(even_steps(steps)),
        ),
        Whole("compiled + Sage", 40, sage, FEW, compiled=True),
        Whole("fp8 + compiled + Sage + cache", 45, lambda s: sage(fp8(s)).cache(CACHE), compiled=True),
        Whole("int8 torchao + compiled", 50, lambda s: s.quantize("int8", backend="torchao"), FEW, compiled=True),
        Whole("int8 native + compiled", 50, int8_native, FEW, compiled=True, late=True),
        Whole("sparse 0.5", 30, lambda s: s.sparse_attn(0.5, even_if_slower=True), FEW),
        Whole(
            "fp8 + sparse 0.5 + compiled + cuDNN + cache", 60,
            lambda s: fp8(s).sparse_attn(0.5, even_if_slower=True).cache(CACHE), compiled=True, attention="cuDNN",
            late=True,
        ),
        *(Whole(f"cache {name}", 18, cached_by(name), late=True) for name in OTHER_CACHES),
        Whole("int8 native, eager", 40, int8_native, 4, late=True),
    ]  # fmt: skip


def large_wholes(setting: Setting) -> list[Whole]:
    """The rows of the large part. Steps are six times as long, so that uncached rows have few of them."""
    fp8 = quantized_to_fp8(setting)
    return [
        Whole("base, eager", 25, steps=SPARSE_STEPS, base="eager"),
        Whole("compiled + cuDNN", 60, steps=SPARSE_STEPS, compiled=True, attention="cuDNN", base="compiled"),
        Whole("sparse 0.5", 45, sparse_by(0.5), SPARSE_STEPS),
        Whole("sparse 0.25", 45, sparse_by(0.25), SPARSE_STEPS),
        Whole("Sage", 25, sage, SPARSE_STEPS),
        Whole("cuDNN", 25, lambda s: s, SPARSE_STEPS, attention="cuDNN"),
        Whole(HEADLINE, 80, lambda s: fp8(s).cache(CACHE), compiled=True, attention="cuDNN"),
        Whole(
            "sparse 0.25 + compiled + cuDNN",
            60,
            sparse_by(0.25),
            SPARSE_STEPS,
            compiled=True,
            attention="cuDNN",
            late=True,
        ),
    ]


def quantized_to_fp8(setting: Setting) -> Callable[[Stack], Stack]:
    """fp8; in a dry run on a CPU, which has no such product, weights alone."""
    if setting.on_gpu:
        return lambda stack: stack.quantize("fp8")
    return lambda stack: stack.quantize("fp8-weight", backend="native")


def int8_native(stack: Stack) -> Stack:
    return stack.quantize("int8", backend="native")


def sage(stack: Stack) -> Stack:
    """8-bit attention; in a dry run on a CPU its arithmetic."""
    return stack.sage_attn(even_if_slower=True)


def cached_by(method: str) -> Callable[[Stack], Stack]:
    return lambda stack: stack.cache(method)


def sparse_by(keep: float) -> Callable[[Stack], Stack]:
    """Sparse on all steps but the first: with few steps the usual dense ones would hide what sparse ones take."""
    return lambda stack: stack.sparse_attn(keep, even_if_slower=True, dense_first=1, dense_last=0)


def even_steps(steps: int) -> tuple[int, ...]:
    """Full steps of our cache's own number, evenly spread: what cache-dit is given."""
    own = PRESETS[CACHE].schedule
    return tuple(Interval(own.interval, own.warmup).full_steps(steps))


def cache_dit(pipe: Any, steps: int) -> Callable[[], None]:
    """cache-dit with one front block, as many full steps as our cache has, and its first-order forecast."""
    import cache_dit as library

    full = even_steps(steps)
    put_cache_dit(pipe, steps, 1, 0, 1, mask=[int(step in full) for step in range(steps)])
    return lambda: library.disable_cache(pipe)
