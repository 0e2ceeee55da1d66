"""Other people's caches on the same pipeline, in the same process: cache-dit and diffusers' own hooks, from PyPI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STEPS = 50


@dataclass(frozen=True)
class Peer:
    """A rival cache.

    Attributes:
        put: enables it on a pipeline for a number of full steps of 50.
        take: disables it.
    """

    put: Callable[[Any, int], None]
    take: Callable[[Any], None]


def _interval(full: int) -> int:
    """The interval whose schedule with 3 warm-up steps has this many full steps (12, 10, 9, 8: 5, 6, 7, 8)."""
    return min(range(2, 40), key=lambda n: abs(3 + (STEPS - 3) // n - full))


def _hooks(config: Callable[[int], Any]) -> Peer:
    return Peer(
        put=lambda pipe, full: pipe.transformer.enable_cache(config(full)),
        take=lambda pipe: pipe.transformer.disable_cache(),
    )


def diffusers_peers() -> dict[str, Peer]:
    """TaylorSeer as diffusers ships it (attention only, and its lite mode), at an interval."""
    from diffusers import TaylorSeerCacheConfig

    def taylor(**options: Any) -> Callable[[int], Any]:
        return lambda full: TaylorSeerCacheConfig(
            cache_interval=_interval(full), disable_cache_before_step=3, max_order=1, **options
        )

    return {
        "diffusers TaylorSeer": _hooks(taylor()),
        "diffusers TaylorSeer lite": _hooks(taylor(use_lite_mode=True)),
    }


def diffusers_gates() -> dict[str, Callable[[Any, float], None]]:
    """First-block cache at a threshold: its number of full steps follows from the picture."""
    from diffusers import FirstBlockCacheConfig

    return {
        "diffusers first-block": lambda pipe, threshold: pipe.transformer.enable_cache(
            FirstBlockCacheConfig(threshold=threshold)
        )
    }


def cache_dit_peers() -> dict[str, Peer]:
    """DBCache with a fixed mask of computed steps, one front block, with and without its TaylorSeer calibrator."""
    import cache_dit

    def put(order: int) -> Callable[[Any, int], None]:
        def enable(pipe: Any, full: int) -> None:
            interval = _interval(full)
            mask = [int(s < 3 or (s - 2) % interval == 0) for s in range(STEPS)]
            config = cache_dit.DBCacheConfig(
                Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=1.0, max_warmup_steps=3,
                num_inference_steps=STEPS, steps_computation_mask=mask, steps_computation_policy="static",
            )  # fmt: skip
            calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
            adapter = cache_dit.BlockAdapter(
                pipe=pipe,
                transformer=pipe.transformer,
                blocks=[pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks],
                forward_pattern=[cache_dit.ForwardPattern.Pattern_1] * 2,
            )
            cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)

        return enable

    take = cache_dit.disable_cache
    return {
        f"cache-dit F1B0 Taylor {order}" if order else "cache-dit F1B0": Peer(put(order), take) for order in (0, 1, 2)
    }
