"""SageAttention 1.0.6 on one model: a processor in front of each layer's own, which keeps what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stack.attention.families import AttentionCall, Family

LOG2_E = 1.4426950408889634
QUERIES, KEYS = 128, 64  # rows that share one step of int8, and the kernel's tiles
HEAD_DIMS = (64, 96, 128)


@torch.library.custom_op("gpu_check::sage", mutates_args=())
def sage_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of (B, S, H, D) tensors with int8 products of queries and keys. Off CUDA: the same in plain torch."""
    if q.device.type != "cuda":
        return in_plain_torch(q, k, v).contiguous()
    from sageattention import sageattn

    # Smoothed here: sageattn would subtract the mean from the caller's keys in place.
    smoothed = k - k.mean(1, keepdim=True)
    return sageattn(q, smoothed, v, tensor_layout="NHD", smooth_k=False)


@sage_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def in_plain_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The kernel's arithmetic: int8 Q K^T, softmax by powers of two in float32, P V in float16."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    queries, keys = q.shape[2], k.shape[2]
    q8, q_step = in_int8(q, QUERIES, q.shape[-1] ** -0.5 * LOG2_E)
    k8, k_step = in_int8(k - k.mean(2, keepdim=True), KEYS, 1.0)
    scores = q8.float() @ k8.float().mT
    scores *= q_step.repeat_interleave(QUERIES, 2)[:, :, :queries, None]
    scores *= k_step.repeat_interleave(KEYS, 2)[:, :, None, :keys]
    weights = torch.exp2(scores - scores.amax(-1, keepdim=True))
    out = (weights.half().float() @ v.half().float()) / weights.sum(-1, keepdim=True)
    return out.to(q.dtype).transpose(1, 2)


def in_int8(x: torch.Tensor, block: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, H, N, D) in int8, and a step (B, H, blocks) per block of rows."""
    count = x.shape[2]
    blocks = F.pad(x.float() * scale, (0, 0, 0, -count % block)).unflatten(2, (-1, block))
    step = blocks.abs().amax((3, 4)) / 127
    levels = blocks / step[..., None, None].clamp_min(1e-30)
    rounded = (levels + 0.5 * levels.sign()).trunc().clamp(-128, 127)
    return rounded.flatten(2, 3)[:, :, :count].to(torch.int8), step


def fits(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether the kernel is right here: keys behind its last whole tile would count as scores of 0."""
    halves = q.dtype in (torch.bfloat16, torch.float16)
    return halves and k.shape[1] % KEYS == 0 and q.shape[-1] in HEAD_DIMS


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
        if not fits(q, k):
            return call.made_by(self.inner)
        return self.family.answer(call, sage_attention(q, k.contiguous(), v.contiguous()).flatten(2, 3))


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
