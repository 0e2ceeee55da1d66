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
        map: time of making the map, dense = 1.
        fewest_tokens: shortest joint sequence that is worth trying.
        source: where the constants come from.
    """

    slope: float
    overhead: float
    map: float
    fewest_tokens: int
    source: str


# CPU: fitted on 576 to 4,096 image tokens, 3 to 24 heads of 64, fp32, keep 0.25 to 0.75, two AVX2 cores; the table is
# in tests/attention/test_cost.py. Two Zen 4 cores break even at the same point in bf16 and fp32. 75 % never gained.
# A map by sampled queries is 2.4 % of dense attention at 4,096 tokens (`benchmarks/maps.py`).
_CPU = Rate(1.4, 3e7, 0.025, 0, "measured on 2 CPU cores")
# CUDA: a guess, nothing was measured. Compiled FlexAttention is published to compute a kept tile about 1.5 times slower
# than a flash kernel does, and training-free sparse attention not to pay below about 8k tokens.
_CUDA = Rate(1.5, 0.0, 0.03, 8192, "published figures, not measured on CUDA")
_RATES = {"cpu": _CPU, "cuda": _CUDA}
SAGE_COST = "not measured on a GPU; its paper gives about 2.1 times FlashAttention 2"
ATTENTION_SHARE = 1 / 3  # of a denoiser's time, about


def predicted_speedup(grid: Grid, density: float, heads: int, head_dim: int, device: str) -> float:
    """Attention's own speed-up, map included: 1 / (slope * density + map + overhead * rows / dense operations)."""
    rate = _RATES.get(device, _CPU)
    operations = 4 * grid.tokens**2 * heads * head_dim
    return 1 / (rate.slope * density + rate.map + rate.overhead * grid.rows / operations)


def worth_it(
    image: int, text: int, keep: float, block: int | None, heads: int, head_dim: int, device: str
) -> tuple[bool, str]:
    """Whether block-sparse attention is faster than dense attention, and why.

    Args:
        image, text: tokens of the two streams.
        keep: share of key blocks kept.
        block: query block, None for the device's best.
        device: "cpu", "cuda", ...; an unknown one is judged as a CPU.
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
    gain = predicted_speedup(grid, density, heads, head_dim, device)
    figures = f"density {density:.2f} at {grid.tokens} tokens runs at {gain:.2f}x of dense attention ({rate.source})"
    return gain >= MARGIN, figures if gain >= MARGIN else f"{figures}; under {MARGIN}x it is not worth its error"
