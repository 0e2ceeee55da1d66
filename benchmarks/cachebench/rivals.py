"""Rival caches in the same process, from PyPI: every setting of cache-dit and diffusers' hooks worth trying."""

from __future__ import annotations

import ast
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from itertools import product
from typing import Any

from . import seacache
from .bench import FIT_SEED, WARMUP, Bench, interval_for, pictures
from .masks import masks
from .rows import Row, rival

# (front blocks, back blocks, Taylor orders). More front blocks cost more than they tell on models of six blocks, and
# cache-dit refuses four on FLUX's two lists. Two front blocks and one behind cost more than the base on FLUX, whose
# blocks it takes for two groups. In 384 settings screened earlier other orders stood for it on shapes-dit alone, at 15
# to 28 dB.
SETTINGS = ((1, 0, (1,)), (1, 1, (2,)), (2, 0, (1,)))
THRESHOLDS = (0.1, 0.15, 0.2, 0.3, 0.45)
TRIED = 2  # of the counts, the largest first: fewer full steps leave every rival here below 35 dB


def cache_dit_rows(bench: Bench) -> Iterator[Row]:
    """DBCache: front and back blocks, order of its TaylorSeer calibrator, fixed masks, thresholds.

    A mask is tried as long as its own count, or the work of all its steps, is one that is compared at.
    """
    blocks = len(_blocks(bench.pipe.transformer))
    for front, back, orders in SETTINGS:
        share = (front + back) * len(_lists(bench.pipe.transformer)) / blocks
        for order in orders:
            for label, mask in masks(bench.counts[:TRIED], bench.steps, min(share, 1.0)).items():
                yield _cache_dit(bench, front, back, order, f"mask {label}", mask=mask)
            for threshold in THRESHOLDS:
                yield _cache_dit(bench, front, back, order, f"threshold {threshold:g}", threshold=threshold)


def _lists(denoiser: Any) -> list[Any]:
    names = ("transformer_blocks", "single_transformer_blocks")
    children = dict(denoiser.named_children())
    return [children[name] for name in names if name in children]


def _blocks(denoiser: Any) -> list[Any]:
    return [block for blocks in _lists(denoiser) for block in blocks]


def _adapter(pipe: Any) -> Any:
    """Block lists and their input-output patterns, as cache-dit's own adapters of these families have them."""
    import cache_dit
    from cache_dit.caching.patch_functors import DiTPatchFunctor

    denoiser, pattern = pipe.transformer, cache_dit.ForwardPattern
    name = type(denoiser).__name__
    patterns = {
        "FluxTransformer2DModel": pattern.Pattern_1,
        "HunyuanVideoTransformer3DModel": pattern.Pattern_0,
        "DiTTransformer2DModel": pattern.Pattern_3,
    }
    blocks = _lists(denoiser)
    return cache_dit.BlockAdapter(
        pipe=pipe,
        transformer=denoiser,
        blocks=blocks if len(blocks) > 1 else blocks[0],
        forward_pattern=[patterns[name]] * len(blocks) if len(blocks) > 1 else patterns[name],
        patch_functor=DiTPatchFunctor() if name.startswith("DiT") else None,
    )


def put_cache_dit(
    pipe: Any, steps: int, front: int, back: int, order: int, mask: list[int] | None = None, threshold: float = 1.0
) -> None:
    """Put DBCache on a pipeline, without cache-dit's log lines; `disable_cache` takes it off.

    Args:
        mask: 1 for each step that runs in full; None lets the threshold decide.
    """
    import cache_dit

    for name in [name for name in logging.root.manager.loggerDict if name.lower().startswith("cache")]:
        logging.getLogger(name).setLevel(logging.ERROR)
    fixed = {"steps_computation_mask": mask, "steps_computation_policy": "static"} if mask else {}
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=front, Bn_compute_blocks=back, residual_diff_threshold=threshold,
        max_warmup_steps=WARMUP, num_inference_steps=steps, **fixed,
    )  # fmt: skip
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    cache_dit.enable_cache(_adapter(pipe), cache_config=config, calibrator_config=calibrator)


def _cache_dit(
    bench: Bench, front: int, back: int, order: int, when: str, mask: list[int] | None = None, threshold: float = 1.0
) -> Row:
    def put(pipe: Any) -> None:
        put_cache_dit(pipe, bench.steps, front, back, order, mask, threshold)

    def take(pipe: Any) -> None:
        import cache_dit

        cache_dit.disable_cache(pipe)

    settings = {"front": front, "back": back, "order": order, "when": when}
    name = f"cache-dit F{front}B{back} Taylor {order}, {when}"
    return rival(bench, name, "cache-dit", "cache-dit", put, take, settings)


def diffusers_rows(bench: Bench, ratios: list[float]) -> Iterator[Row]:
    """TaylorSeer (attention only) and its lite mode at intervals, first-block, MagCache and SeaCache at thresholds.

    Args:
        ratios: MagCache's, from `mag_ratios`; empty where its hook does not work on this model.
    """
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import MagCacheConfig

    for full, lite, order in product(bench.counts[:TRIED], (False, True), (1, 2)):
        interval = interval_for(full, bench.steps)
        yield _hook(
            bench, "TaylorSeer lite" if lite else "TaylorSeer", {"cache_interval": interval, "max_order": order},
            partial(_taylor, lite),
        )  # fmt: skip
    for threshold in THRESHOLDS:
        yield _hook(bench, "first-block", {"threshold": threshold}, lambda given: FirstBlockCacheConfig(**given))
    for threshold, longest, kept in product((0.06, 0.12, 0.24, 0.5), (3, 6), (0.06,)):
        yield _hook(
            bench, "MagCache", {"threshold": threshold, "max_skip_steps": longest, "retention_ratio": kept},
            lambda given: MagCacheConfig(
                num_inference_steps=bench.steps, mag_ratios=ratios or [1.0] * bench.steps, **given
            ),
        )  # fmt: skip
    for threshold, longest in product((0.1, 0.25, 0.5, 1.0), (2, 6)):
        given = {"threshold": threshold, "order": 1, "longest": longest}
        words = f"diffusers SeaCache, threshold {threshold:g}, longest {longest}"
        yield rival(
            bench, words, "diffusers", "diffusers SeaCache", partial(seacache.put, **given),
            lambda pipe: pipe.transformer.disable_cache(), given,
        )  # fmt: skip


def _taylor(lite: bool, given: dict[str, Any]) -> Any:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(disable_cache_before_step=WARMUP, use_lite_mode=lite, **given)


def _hook(bench: Bench, what: str, settings: dict[str, Any], config: Callable[[dict[str, Any]], Any]) -> Row:
    words = ", ".join(f"{key} {value:g}" for key, value in settings.items())
    return rival(
        bench, f"diffusers {what}, {words}", "diffusers", f"diffusers {what}",
        lambda pipe: pipe.transformer.enable_cache(config(settings)), lambda pipe: pipe.transformer.disable_cache(),
        settings,
    )  # fmt: skip


def mag_ratios(bench: Bench, text: str) -> list[float]:
    """The ratios that diffusers' MagCache prints in its calibration run."""
    from diffusers.hooks import MagCacheConfig

    pipe, printed = bench.load(), io.StringIO()
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=bench.steps))
    with redirect_stdout(printed):
        pictures(pipe, text, bench.steps, seed=FIT_SEED)
    return ast.literal_eval(next(line for line in printed.getvalue().splitlines() if line.startswith("[1.0")))
