"""What stands in for a block, or for the whole stack, in one sample: its linear map, and the test that allows it."""

from __future__ import annotations

import torch

from .chi_square import adaptive_limit, largest_change
from .choices import RESIDUAL, FastCacheChoices
from .running import pick, put
from .saliency import relative_change

Kept = dict[str, torch.Tensor]


class Replacement:
    """Works on what one sample keeps: per key the input (1, N, D) to compare with, and what was added then.

    Keys are those of the approximation's `LinearMaps.maps`. Tokens are given with their places in the whole sequence;
    None is all of them.

    Args:
        choices: of FastCache.
        like: a tensor of the model, for dtype and device.
    """

    def __init__(self, choices: FastCacheChoices, like: torch.Tensor):
        self.choices = choices
        fitted = choices.maps if choices.needs_maps else None
        self._maps = (
            {} if fitted is None else {key: m.to(like) for key, m in fitted.maps[choices.approximation].items()}
        )
        self._scales = [] if fitted is None else fitted.scales(choices.approximation, choices.threshold)

    def skips(
        self, kept: Kept, number: int, key: str, x: torch.Tensor, places: torch.Tensor | None, sigma: float
    ) -> bool:
        """The gate: whether a block's input (1, n, D) has changed too little for it to run. Reads one number."""
        p, fits = self.choices, not self._scales or self._scales[number]
        if not fits or key not in kept:
            return False
        change = relative_change(x, pick(kept[key], places))
        limit = largest_change(self._scales[number], p.alpha, x.numel()) if self._scales else p.threshold
        if p.adaptive:
            limit = min(limit, adaptive_limit(change, sigma, p.adaptive))
        return change <= limit

    def knows(self, kept: Kept, key: str) -> bool:
        """Whether a block's output of this stream is known: the last blocks of some models return no text."""
        return key in self._maps if self.choices.approximation == "static" else f"{key}/added" in kept

    def output(self, kept: Kept, key: str, x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """The input (1, n, D) and what the block is taken to add to it."""
        if self.choices.approximation == "static":
            return x + self._maps[key](x)
        added = pick(kept[f"{key}/added"], places)
        if self.choices.approximation == RESIDUAL:
            return x + added
        return x + (added + self._maps[key].slope(x - pick(kept[key], places)))

    def remember(
        self, kept: Kept, key: str, x: torch.Tensor, out: torch.Tensor | None, places: torch.Tensor | None
    ) -> None:
        """A block has been passed with this input and output (1, n, D); no output where it was replaced."""
        if self.choices.approximation == "static":
            kept[key] = put(kept.get(key), places, x)
        elif out is not None:
            kept[key] = put(kept.get(key), places, x)
            kept[f"{key}/added"] = put(kept.get(f"{key}/added"), places, out - x)
