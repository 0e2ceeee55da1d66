"""SageAttention 1.0.6 on one model: a processor in front of each layer's own, which keeps what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stack.attention.sage import sage_attention, unfit
from stack.models.attention import AttentionCall, Family


class SageProcessor:
    """Attention by SageAttention where there is no mask and the shapes fit, else by the layer's own processor.

    Args:
        inner: the layer's own, which also keeps what diffusers sets on processors.
    """

    def __init__(self, inner: Any, family: Family):
        self.inner, self.family = inner, family

    @property
    def _attention_backend(self) -> Any:
        return self.inner._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.inner._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.inner._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.inner._parallel_config = config

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        call = AttentionCall(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None:
            return call.made_by(self.inner)
        q, k, v = self.family.qkv(call)
        if unfit(q, k, v):
            return call.made_by(self.inner)
        return self.family.answer(call, sage_attention(q, k, v).flatten(2, 3))


def put_sage(denoiser: nn.Module, family: Family) -> Callable[[], None]:
    """Put a processor on every attention layer; returns what takes them off."""
    from .attention import attention_layers

    before = {layer: layer.processor for layer in attention_layers(denoiser)}
    for layer, processor in before.items():
        layer.processor = SageProcessor(processor, family)

    def take_off() -> None:
        for layer, processor in before.items():
            layer.processor = processor

    return take_off
