"""When skipping blocks pays: a rule on shapes alone, from measured constants. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..compat.rules.sparse import MARGIN
from ..core.facts import Machine
from .maps import Grid, cut
from .products import pays


@dataclass(frozen=True)
class Rate:
    """What block-sparse attention costs beside dense attention on one kind of device: all in its time.

    Attributes:
        device: its type, which decides how blocks are cut.
        slope: computing all scores.
        map: the sampled scores that a map is made of.
        error: measuring what sampled outputs lose.
        short: tokens of a sequence on which copying keys, means of blocks and the calls themselves take as long as
            dense attention: they take less of it the longer a sequence is.
        fewest_tokens: shortest joint sequence that is worth trying.
        source: where the constants come from.
    """

    device: str
    slope: float
    map: float
    error: float
    short: float
    fewest_tokens: int
    source: str


# CPU: fitted on 576 to 9,216 image tokens, 3 and 8 heads of 64 and 128, a share of 0.25 to 0.75 kept, one thread of a
# Zen 4 core, CPU time; with and without the kernel of `products`. tests/attention/test_cost.py has the table.
CPU = Rate("cpu", 1.12, 0.02, 0.08, 165.0, 0, "measured on a CPU core")
CPU_PRODUCTS = Rate("cpu", 1.08, 0.03, 0.2, 400.0, 0, "measured on a CPU core with AVX-512 BF16")
# CUDA: a guess, nothing was measured. Compiled FlexAttention is published to compute a kept tile about 1.5 times slower
# than a flash kernel does, and training-free sparse attention not to pay below about 8k tokens.
CUDA = Rate("cuda", 1.5, 0.03, 0.1, 0.0, 8192, "published figures, not measured on CUDA")
SAGE_COST = "not measured on a GPU; its paper gives about 2.1 times FlashAttention 2"
ATTENTION_SHARE = 1 / 3  # of a denoiser's time, about


def rate_of(machine: Machine, dtype: torch.dtype) -> Rate:
    """The rate for a machine and what a model computes in; a device that nothing is known of is taken for a CPU."""
    if machine.device == "cuda":
        return CUDA
    known = CPU_PRODUCTS if pays(machine, dtype) else CPU
    return known if machine.device == "cpu" else replace(known, device=machine.device)


def densest(rate: Rate) -> float:
    """The share of a head's scores from which on all of them take no longer: it is computed densely."""
    return min(1.0, 1 / rate.slope)


def predicted_speedup(grid: Grid, density: float, rate: Rate, error: bool = False) -> float:
    """Attention's own speed-up, the map included: dense time over the sum of computed scores, map and overheads.

    Args:
        error: the map is made for a budget of the error, which has to be measured.
    """
    return 1 / (rate.slope * density + rate.map + (rate.error if error else 0.0) + rate.short / grid.tokens)


def worth_it(
    image: int,
    text: int,
    keep: float,
    block: int | None,
    rate: Rate,
    error: bool = False,
) -> tuple[bool, str]:
    """Whether block-sparse attention is faster than dense attention, and why.

    Args:
        image, text: tokens of the two streams.
        keep: share of key blocks kept.
        block: query block, None for the device's best.
        error: see `predicted_speedup`.
    """
    grid = cut(image, text, block, rate.device)
    if keep == 1:
        return False, "keep 1 keeps every block"
    if grid.tokens < rate.fewest_tokens:
        return False, f"{grid.tokens} tokens, pays from {rate.fewest_tokens} ({rate.source})"
    if grid.kept(keep) >= grid.blocks:
        return False, f"{image} image tokens make {grid.blocks} blocks of {grid.key}, none of which would be dropped"
    density = grid.density(keep)
    gain = predicted_speedup(grid, density, rate, error)
    figures = f"density {density:.2f} at {grid.tokens} tokens runs at {gain:.2f}x of dense attention ({rate.source})"
    return gain >= MARGIN, figures if gain >= MARGIN else f"{figures}; under {MARGIN}x it is not worth its error"
