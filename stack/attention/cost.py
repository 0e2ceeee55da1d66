"""When skipping blocks pays: a rule on shapes alone, from measured constants. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..compat.rules.sparse import MARGIN
from .maps import Grid, cut


@dataclass(frozen=True)
class Rate:
    """What block-sparse attention costs beside dense attention on one kind of device.

    Attributes:
        slope: time per computed score, dense = 1.
        overhead: time of one query block's calls, in operations that dense attention does meanwhile.
        map: time of the sampled scores that a map is made of, dense = 1.
        map_overhead: time of making the map however short the sequence is, in operations likewise.
        error: time of measuring what sampled outputs lose, dense = 1.
        fewest_tokens: shortest joint sequence that is worth trying.
        source: where the constants come from.
    """

    slope: float
    overhead: float
    map: float
    map_overhead: float
    error: float
    fewest_tokens: int
    source: str


# CPU: slope and overhead fitted on 576 to 4,096 image tokens, 3 to 24 heads of 64, fp32, keep 0.25 to 0.75, two AVX2
# cores. Two Zen 4 cores break even at the same point in bf16 and fp32. The rest on 576 to 9,216 image tokens, 3 and 8
# heads, one AVX-512 core: with 3 heads a map takes 21 % of dense attention at 592 tokens, 9 to 11 % at 1,040, 3.2 % at
# 4,112 and 3 % at 9,232, and measuring errors another 7 to 14 % from 1,040 tokens on. The tables in
# tests/attention/test_cost.py hold all of them to it. 75 % never gained 10 %.
_CPU = Rate(1.4, 3e7, 0.028, 5e7, 0.1, 0, "measured on CPU cores")
# CUDA: a guess, nothing was measured. Compiled FlexAttention is published to compute a kept tile about 1.5 times slower
# than a flash kernel does, and training-free sparse attention not to pay below about 8k tokens.
_CUDA = Rate(1.5, 0.0, 0.03, 0.0, 0.1, 8192, "published figures, not measured on CUDA")
_RATES = {"cpu": _CPU, "cuda": _CUDA}
SAGE_COST = "not measured on a GPU; its paper gives about 2.1 times FlashAttention 2"
ATTENTION_SHARE = 1 / 3  # of a denoiser's time, about


def densest(device: str) -> float:
    """The share of a head's scores from which on all of them take no longer: it is computed densely."""
    return 1 / _RATES.get(device, _CPU).slope


def predicted_speedup(grid: Grid, density: float, heads: int, head_dim: int, device: str, error: bool = False) -> float:
    """Attention's own speed-up, the map included: dense time over the sum of computed scores, map and overheads.

    Args:
        error: the map is made for a budget of the error, which has to be measured.
    """
    rate = _RATES.get(device, _CPU)
    operations = 4 * grid.tokens**2 * heads * head_dim
    overhead = (rate.overhead * grid.rows + rate.map_overhead) / operations
    return 1 / (rate.slope * density + rate.map + (rate.error if error else 0.0) + overhead)


def worth_it(
    image: int,
    text: int,
    keep: float,
    block: int | None,
    heads: int,
    head_dim: int,
    device: str,
    error: bool = False,
) -> tuple[bool, str]:
    """Whether block-sparse attention is faster than dense attention, and why.

    Args:
        image, text: tokens of the two streams.
        keep: share of key blocks kept.
        block: query block, None for the device's best.
        device: "cpu", "cuda", ...; an unknown one is judged as a CPU.
        error: see `predicted_speedup`.
    """
    rate = _RATES.get(device, _CPU)
    grid = cut(image, text, block, device)
    if keep == 1:
        return False, "keep 1 keeps every block"
    if grid.tokens < rate.fewest_tokens:
        return False, f"{grid.tokens} tokens, pays from {rate.fewest_tokens} ({rate.source})"
    if grid.kept(keep) >= grid.blocks:
        return False, f"{image} image tokens make {grid.blocks} blocks of {grid.key}, none of which would be dropped"
    density = grid.density(keep)
    gain = predicted_speedup(grid, density, heads, head_dim, device, error)
    figures = f"density {density:.2f} at {grid.tokens} tokens runs at {gain:.2f}x of dense attention ({rate.source})"
    return gain >= MARGIN, figures if gain >= MARGIN else f"{figures}; under {MARGIN}x it is not worth its error"
