"""What caches keep, written down call by call: for what has to be measured on features."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from ..models.derive.wiring import wiring_of
from ..models.layout import Wiring
from ..models.ports import Streams
from ..runtime.step import StepContext
from .trajectory import sampled

BLOCK = "block "  # name of what a block adds, before its number


@dataclass
class SiteFeatures:
    """What caches keep of the output stream, call by call and at some tokens: "block 0" ... are what each block adds,
    "whole residual" is their sum, "last hidden state" the stream behind them. Pass `see` to
    `watching_blocks`.

    Attributes:
        found: one (B, n, D) float32 per name and call, on the host.
    """

    denoiser: nn.Module
    found: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    _entry: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self._wiring: Wiring = wiring_of(self.denoiser)
        self._last = len(self._wiring.blocks(self.denoiser)) - 1

    def see(self, number: int, entry: Streams, out: Streams, context: StepContext) -> None:
        """One call of one block."""
        stream = self._wiring.output_stream
        if number == 0:
            self._entry = entry[stream]
        self._note(f"{BLOCK}{number}", out[stream] - entry[stream])
        if number == self._last:
            assert self._entry is not None
            self._note("whole residual", out[stream] - self._entry)
            self._note("last hidden state", out[stream])

    def taken(self) -> dict[str, list[torch.Tensor]]:
        """What was found since the last time; starts anew."""
        found, self.found = self.found, {}
        return found

    def _note(self, name: str, feature: torch.Tensor) -> None:
        self.found.setdefault(name, []).append(sampled(feature).cpu())
