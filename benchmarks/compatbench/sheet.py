"""The picture beside the record: where activations are coarse, naive order-2 Taylor against the layer and reuse."""

from __future__ import annotations

from typing import Any

from PIL import Image

from stack.comparison.grid import draw_grid

from .contestants import PAIRS, contestants
from .matrix import Matrix
from .variants import variants

METHOD = PAIRS
ROLES = {"naive": "control", "layer": "all", "reuse": "alone"}


def sheet(matrix: Matrix) -> Image.Image:
    """Rows of every variant that is only there to show what breaks."""
    rows: list[dict[str, Any]] = []
    pictures = {}
    for variant in variants(matrix.model):
        if variant.bound or variant.name == variant.plain:
            continue
        pictures[variant.name] = matrix.base(variant)
        rows.append(_row(variant.name, "base", None, variant.steps, variant.steps))
        for contestant in contestants(variant, matrix.calibrated, matrix.maps, matrix.noise):
            if contestant.method != METHOD:
                continue
            key = f"{variant.name}: {METHOD}, {contestant.kind}"
            known = matrix.record.remember(key, lambda v=variant, c=contestant: matrix.row(v, c))
            if key not in matrix.made:
                matrix.row(variant, contestant)
            name = f"{contestant.kind}, {variant.name}"
            pictures[name] = matrix.made[key]
            rows.append(
                _row(name, ROLES[contestant.kind], known["psnr"], variant.steps - known["cached"], variant.steps)
            )
    return draw_grid({"rows": rows, "prompts": matrix.texts}, pictures)


def _row(name: str, group: str, psnr: float | None, full: int, steps: int) -> dict[str, Any]:
    return {
        "name": name, "role": "base" if group == "base" else "", "group": group, "psnr_db": psnr,
        "speedup": steps / full, "full_steps": full, "steps": steps, "same_as": None,
    }  # fmt: skip
