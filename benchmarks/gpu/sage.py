"""SageAttention 1.0.6 on one model, in place of torch's attention where it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stack.attention.sage import sage_attention, unfit
from stack.core.installer import Installer
from stack.models.sdpa import Answering, SdpaCall


def _sage(call: SdpaCall) -> torch.Tensor | None:
    q, k, v = call.plain()
    if call.mask is not None or unfit(q, k, v):
        return None
    return sage_attention(q, k, v).transpose(1, 2)


def _with_sage(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        with Answering(_sage):
            return inner(*args, **kwargs)

    return forward


def put_sage(denoiser: nn.Module) -> Callable[[], None]:
    """Put it into every attention layer; returns what takes it off. Compiled blocks break around these layers."""
    from .attention import attention_layers

    install = Installer()
    for layer in attention_layers(denoiser):
        install.wrap_call(layer, "forward", _with_sage, traced=False)
    return install.rollback
