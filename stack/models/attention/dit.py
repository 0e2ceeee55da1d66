"""DiT: no text, no positions in the attention, no norms of queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from .base import QKV, AttentionCall, Family


def _is_plain(attn: Any) -> bool:
    """diffusers' `Attention` can do much that DiT does not; only what DiT does is read here."""
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k)
    scaled = attn.residual_connection or attn.rescale_output_factor != 1 or attn.is_cross_attention
    return type(attn.processor) is AttnProcessor2_0 and not scaled and all(extra is None for extra in extras)


def _lengths(call: AttentionCall, text_tokens: int | None) -> tuple[int, int] | None:
    return (call.hidden.shape[1], 0) if call.text is None else None


def _qkv(call: AttentionCall) -> QKV:
    attn = call.attn
    q, k, v = (part(call.hidden).unflatten(2, (attn.heads, -1)) for part in (attn.to_q, attn.to_k, attn.to_v))
    return q, k, v


def _answer(call: AttentionCall, out: torch.Tensor) -> torch.Tensor:
    return call.attn.to_out[1](call.attn.to_out[0](out))


DIT = Family(is_plain=_is_plain, lengths=_lengths, qkv=_qkv, answer=_answer, dispatches=False)
