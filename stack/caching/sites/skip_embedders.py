"""Embedders that only blocks read: on a step on which no block runs, they need not run either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ...core.installer import Installer
from ...models.wiring import Wiring


class SkipEmbedders:
    """Stands before the embedders of the blocks' streams (`Wiring.embedders`).

    HunyuanVideo's refines the text in blocks of its own: a third of a cached step of a small model. On such a step they
    answer with a tensor of the shape they last had, without memory, and of NaN: should anything read it after all, the
    output's guard notices.
    """

    def __init__(self) -> None:
        self._branch: str | None = None  # of the current call; None outside of calls
        self._idle = False
        self._like: dict[tuple[str, str], torch.Tensor] = {}  # by module and branch

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer, residual: bool = False) -> None:
        """Stand before them; with `residual` not before the output stream's, which the forecast is added to."""
        for stream, module in wiring.embedders.items():
            if stream != wiring.output_stream or not residual:
                install.wrap_call(denoiser.get_submodule(module), "forward", partial(self._embedder, module))

    @contextmanager
    def during(self, branch: str, idle: bool) -> Iterator[None]:
        """A call of the denoiser for this branch goes on, in which no block runs if `idle`."""
        self._branch, self._idle = branch, idle
        try:
            yield
        finally:
            self._branch, self._idle = None, False

    def _embedder(self, module: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._branch is None:
                return inner(*args, **kwargs)
            key = module, self._branch
            if self._idle and key in self._like:
                return self._like[key]
            made = inner(*args, **kwargs)
            self._like[key] = made.new_full((), torch.nan).expand(made.shape)
            return made

        return forward
