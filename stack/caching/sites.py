"""Where a cache sits: it stands between the blocks and the model, and answers in their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..install import Installer
from ..models.wiring import Wiring


class WholeStack:
    """All blocks as one: on a cached step none runs, and the last one's place is taken by a predicted feature.

    The feature is the output stream before the head (for FLUX: the image tokens before `norm_out`; the text stream ends
    there unread). Embedders and head run on every step, with the current time.

    Args:
        enter: called with the first block's output-stream input (B, N, D); says whether the step is cached.
        store: called with the last block's output stream on a full step.
        predict: gives the output stream on a cached step.
    """

    def __init__(
        self,
        enter: Callable[[torch.Tensor], bool],
        store: Callable[[torch.Tensor], None],
        predict: Callable[[], torch.Tensor],
    ):
        self._enter, self._store, self._predict = enter, store, predict
        self._skip = False

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before every block; returns their number."""
        blocks = [block for _, block in wiring.blocks(denoiser)]
        names = list(wiring.streams.values())
        place = list(wiring.streams).index(wiring.output_stream)
        for number, block in enumerate(blocks):
            arguments = inspect.signature(block.forward)
            first, last = number == 0, number == len(blocks) - 1

            def stand_in(
                inner: Callable[..., Any],
                arguments: inspect.Signature = arguments,
                first: bool = first,
                last: bool = last,
            ) -> Callable[..., Any]:
                def forward(*args: Any, **kwargs: Any) -> Any:
                    if first or self._skip:
                        given = arguments.bind(*args, **kwargs).arguments
                        streams = [given[name] for name in names]
                        if first:
                            self._skip = self._enter(streams[place])
                    if self._skip:
                        if last:
                            streams[place] = self._predict()
                        return tuple(streams)
                    result = inner(*args, **kwargs)
                    if last:
                        self._store(result[place])
                    return result

                return forward

            install.wrap_call(block, "forward", stand_in)
        return len(blocks)
