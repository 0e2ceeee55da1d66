"""FLUX: text first; double blocks are given both streams, single blocks the joint sequence."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, _get_qkv_projections

from .base import QKV, AttentionCall, Family


def _lengths(call: AttentionCall, text_tokens: int | None) -> tuple[int, int] | None:
    if call.text is not None:
        return call.hidden.shape[1], call.text.shape[1]
    return None if text_tokens is None else (call.hidden.shape[1] - text_tokens, text_tokens)


def _qkv(call: AttentionCall) -> QKV:
    attn = call.attn

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, attn.head_dim))

    q, k, v, text_q, text_k, text_v = _get_qkv_projections(attn, call.hidden, call.text)
    q, k, v = attn.norm_q(heads(q)), attn.norm_k(heads(k)), heads(v)
    if call.text is not None:
        q = torch.cat([attn.norm_added_q(heads(text_q)), q], 1)
        k = torch.cat([attn.norm_added_k(heads(text_k)), k], 1)
        v = torch.cat([heads(text_v), v], 1)
    if call.rotary is not None:
        q, k = (apply_rotary_emb(x, call.rotary, sequence_dim=1) for x in (q, k))
    return q, k, v


def _answer(call: AttentionCall, out: torch.Tensor) -> Any:
    if call.text is None:
        return out
    attn, text = call.attn, call.text.shape[1]
    text_out, image_out = out[:, :text].contiguous(), out[:, text:].contiguous()
    return attn.to_out[1](attn.to_out[0](image_out)), attn.to_add_out(text_out)


FLUX = Family(
    is_plain=lambda attn: type(attn.processor) is FluxAttnProcessor,
    lengths=_lengths,
    qkv=_qkv,
    answer=_answer,
    joins_text=True,
)
