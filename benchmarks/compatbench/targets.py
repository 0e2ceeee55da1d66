"""What is asked of the matrix, from its rows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from common import Target

from .contestants import PAIRS

Line = dict[str, Any]
GROWS = 1.15  # most that a cache's loss may grow on another model
BREAKS_DB = 3.0  # what naive order-2 Taylor loses beyond ours where activations are coarse


def _typical(row: Line, plain: Line) -> float:
    """The loss over the plain model's in the median picture: one that fell to another mode does not decide it."""
    return float(10 ** (median(b - a for a, b in zip(row["each"], plain["each"], strict=True)) / 10))


def _over(row: Line, other: Line | None) -> float | None:
    """A loss over another; None where that is none."""
    return row["mse"] / other["mse"] if other and other["mse"] else None


def ratios(rows: Sequence[Line]) -> list[Line]:
    """Each layered pair: its loss over the cache's on the plain model, over naive joining's, and over plain reuse's."""
    by = {(row["variant"], row["method"], row["kind"]): row for row in rows}
    found = []
    for (variant, method, kind), row in by.items():
        plain = by.get((row["plain"], method, "layer"))
        if kind != "layer" or variant == row["plain"] or plain is None:
            continue
        own = by.get((row["plain"], method, "naive"))
        naive, reuse = by.get((variant, method, "naive")), by.get((variant, method, "reuse"))
        found.append(
            {
                "variant": variant, "cache": method, "bound": row["bound"], "PSNR": row["psnr"],
                "naive PSNR": naive and naive["psnr"], "plain PSNR": plain["psnr"],
                "reuse PSNR": reuse and reuse["psnr"],
                "loss over plain": _over(row, plain),
                "typical over plain": _typical(row, plain) if row["mse"] and plain["mse"] else None,
                "carried over plain": row["carried"] and plain["carried"] and row["carried"] / plain["carried"],
                "loss over the cache's own": _over(row, own),
                "naive over plain": naive and _over(naive, plain),
                "loss over reuse": _over(row, reuse),
            }
        )  # fmt: skip
    return found


def matrix_targets(rows: Sequence[Line]) -> list[Target]:
    """Pairs that are bound, then what is to be seen where activations are coarse."""
    targets = []
    for line in ratios(rows):
        pair = f"{line['cache']} on {line['variant']}"
        if line["bound"] and line["loss over plain"] is not None:
            targets.append(
                Target(f"{pair}: loss over the cache's on the plain model", line["loss over plain"], GROWS, "<=")
            )
            if line["loss over reuse"] is not None:
                targets.append(Target(f"{pair}: loss over plain reuse's", line["loss over reuse"], 1.0, "<="))
        elif line["cache"] == PAIRS:
            targets.append(Target(f"{pair}: dB over naive joining", line["PSNR"] - line["naive PSNR"], BREAKS_DB))
    return targets
