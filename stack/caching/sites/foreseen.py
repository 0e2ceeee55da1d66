"""The whole stack of blocks under a schedule: that a step is cached is known before the model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ...core.installer import Installer
from ...models.wiring import Wiring
from ...runtime.call import DenoiserCall, Entrance
from ..controller import CacheController, CacheSlot
from .block_range import BlockRange
from .skip_embedders import SkipEmbedders


class Foreseen:
    """Decides at the denoiser's entrance, lets embedders idle, and stands between a `BlockRange` and its controller.

    Args:
        entrance: where the denoiser's calls come by.
        residual: as for `BlockRange`.
    """

    probe = ""

    def __init__(self, controller: CacheController, entrance: Entrance, residual: bool):
        self.controller, self.entrance, self.residual = controller, entrance, residual
        self.clock = controller.clock
        self.idle = SkipEmbedders()
        self._skips: list[bool] = []

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before the denoiser, embedders and every block; returns how many blocks can be skipped."""
        install.wrap_call(self.entrance, "run", lambda inner: lambda call: self._visit(call, inner))
        self.idle.install(denoiser, wiring, install, self.residual)
        return BlockRange(self, residual=self.residual).install(denoiser, wiring, install)

    def _visit(self, call: DenoiserCall, run: Callable[[DenoiserCall], Any]) -> Any:
        self.controller.begin(call.latent)
        self._skips = self.controller.decide()
        with self.idle.during(self.controller.now.branch, all(self._skips)):
            return run(call)

    @property
    def cells(self) -> list[CacheSlot]:
        return self.controller.cells

    def begin(self, tokens: torch.Tensor) -> None:
        """The controller has been told of the call at the entrance."""

    def decide(self, probe: torch.Tensor | None = None) -> list[bool]:
        """What was decided at the entrance."""
        return self._skips

    def store(self, key: str, feature: torch.Tensor, cells: Sequence[CacheSlot]) -> None:
        self.controller.store(key, feature, cells)

    def predict(self, key: str, cells: Sequence[CacheSlot]) -> torch.Tensor:
        return self.controller.predict(key, cells)

    def reject(self, cells: Sequence[CacheSlot]) -> None:
        raise AssertionError("nothing is drafted here")
