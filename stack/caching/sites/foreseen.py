"""The whole stack of blocks under a schedule: known to be cached before the model runs, so embedders can idle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ...entrance import DenoiserCall, Entrance
from ...install import Installer
from ...models.wiring import Wiring
from ..controller import CacheController, Cell
from .span import Span


class Foreseen:
    """Decides at the entrance of the denoiser, and stands between a `Span` of all blocks and its controller.

    On a cached step nobody reads what the embedders of the blocks' streams make: HunyuanVideo's refines the text in
    blocks of its own. They answer with a tensor of the same shape without memory, and of NaN: should anything read it
    after all, the output's guard notices. With `residual` the output stream's own is what the forecast is added to.

    Args:
        entrance: where the denoiser's calls come by.
        residual: as for `Span`.
    """

    probe = ""

    def __init__(self, controller: CacheController, entrance: Entrance, residual: bool):
        self.controller, self.entrance, self.residual = controller, entrance, residual
        self.clock = controller.clock
        self._skips: list[bool] | None = None  # of the current call; None outside of calls
        self._like: dict[tuple[str, str], torch.Tensor] = {}  # by module and branch, what stands in for its output

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before the denoiser, those embedders and every block; returns how many blocks can be skipped."""
        install.wrap_call(self.entrance, "run", lambda inner: lambda call: self._visit(call, inner))
        for stream, module in wiring.embedders.items():
            if stream != wiring.output_stream or not self.residual:
                install.wrap_call(denoiser.get_submodule(module), "forward", partial(self._embedder, module))
        return Span(self, residual=self.residual).install(denoiser, wiring, install)

    def _visit(self, call: DenoiserCall, run: Callable[[DenoiserCall], Any]) -> Any:
        self.controller.begin(call.latent)
        self._skips = self.controller.decide()
        try:
            return run(call)
        finally:
            self._skips = None

    def _embedder(self, module: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._skips is None:  # somebody calls it between calls of the denoiser
                return inner(*args, **kwargs)
            key = module, self.controller.now.branch
            if all(self._skips) and key in self._like:
                return self._like[key]
            made = inner(*args, **kwargs)
            self._like[key] = made.new_full((), torch.nan).expand(made.shape)
            return made

        return forward

    @property
    def cells(self) -> list[Cell]:
        return self.controller.cells

    def begin(self, tokens: torch.Tensor) -> None:
        """The controller has been told of the call at the entrance."""

    def decide(self, probe: torch.Tensor | None = None) -> list[bool]:
        """What was decided at the entrance."""
        assert self._skips is not None, "the denoiser was called around its stack"
        return self._skips

    def store(self, key: str, feature: torch.Tensor, cells: Sequence[Cell]) -> None:
        self.controller.store(key, feature, cells)

    def predict(self, key: str, cells: Sequence[Cell]) -> torch.Tensor:
        return self.controller.predict(key, cells)

    def reject(self, cells: Sequence[Cell]) -> None:
        raise AssertionError("nothing is drafted here")
