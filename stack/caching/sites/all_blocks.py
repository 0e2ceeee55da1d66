"""All blocks as one under a schedule: that a step is cached is known before the model runs, and no block does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ...core.arguments import Arguments
from ...core.installer import Installer
from ...models.layout import Wiring
from ...models.parallel import behind_split
from ...models.ports import shape_only
from ...runtime.call import DenoiserCall, Interceptor, Proceed
from ..contract import BeforeBlocks
from ..controller import CacheController
from .bypass import Bypass


class AllBlocks(BeforeBlocks):
    """Decides before the denoiser is called. On a cached step the last block answers with the forecast, all others and
    what only they read are bypassed. Where the decision needs to see a block, or some blocks run, see `BlockRange`.

    Args:
        residual: predict what the blocks add, or the last hidden state.
    """

    def __init__(self, controller: CacheController, residual: bool = False):
        self.controller, self.residual = controller, residual
        self.interceptors: tuple[Interceptor, ...] = (self,)
        self._bypass = Bypass()
        self._at: dict[str, int] = {}  # streams that are read behind the blocks, to places in what the last one returns
        self._forecast: dict[str, torch.Tensor] | None = None  # of the current call, where it is cached
        self._entry: dict[str, torch.Tensor] = {}  # the same streams where the blocks begin
        self._calling = False

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before the blocks and what they alone read; returns how many blocks can be skipped."""
        paths, blocks = zip(*wiring.blocks(denoiser), strict=True)
        # A forecast of what the blocks add is added to the stream's own embedding.
        self._bypass.install([*wiring.idle(denoiser, entry=self.residual), *blocks[:-1]], install)
        first, last = (Arguments(block.forward, block) for block in (blocks[0], blocks[-1]))
        places, takes = wiring.ports_of(paths[-1], last.names).places, wiring.ports_of(paths[0], first.names).takes
        self._at = {stream: places[stream] for stream in wiring.read}
        install.wrap_call(*behind_split(blocks[-1]), self._last)
        if self.residual:
            install.wrap_call(*behind_split(blocks[0]), lambda inner: self._first(inner, first, takes))
        return len(blocks)

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        """Decide for a call of the denoiser, and make it."""
        controller = self.controller
        latent = call.given[call.name]
        controller.begin(latent if isinstance(latent, torch.Tensor) else call.latent)
        cached = all(controller.decide())
        if cached:
            self._forecast = {}
            for stream in self._at:  # no comprehension: on a cached step each function call counts
                self._forecast[stream] = controller.predict(stream, controller.slots)
        self._calling = True
        try:
            return self._bypass.run(call, proceed, controller.now.branch, cached)
        finally:
            self._calling, self._forecast, self._entry = False, None, {}

    def _first(self, inner: Callable[..., Any], arguments: Arguments, takes: Mapping[str, str]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._calling:
                given = arguments.named(args, kwargs)
                self._entry = {stream: given[takes[stream]] for stream in self._at}
            return inner(*args, **kwargs)

        return forward

    def _last(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        unread: dict[str, Any] = {}  # the other streams as the last block returns them, by branch

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._calling:
                return inner(*args, **kwargs)
            branch, forecast = self.controller.now.branch, self._forecast
            if forecast is not None:
                for stream, begun in self._entry.items():
                    forecast[stream] = begun + forecast[stream]
                answer = unread[branch]
                if isinstance(answer, torch.Tensor):
                    return next(iter(forecast.values()))
                items = list(answer)  # the other streams: nobody reads them behind the blocks
                for stream, feature in forecast.items():
                    items[self._at[stream]] = feature
                return type(answer)(items)
            made = inner(*args, **kwargs)
            for stream, place in self._at.items():
                feature = made if isinstance(made, torch.Tensor) else made[place]
                added = feature - self._entry[stream] if self._entry else feature
                self.controller.store(stream, added, self.controller.slots)
            self.controller.read_norms()
            unread[branch] = shape_only(made)
            return made

        return forward
