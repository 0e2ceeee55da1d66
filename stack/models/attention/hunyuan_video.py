"""HunyuanVideo: text behind the video, without positions, and padded text hidden by a mask.

Double blocks project and normalise the text on its own; single blocks project both together and still rotate the video
alone.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from .base import QKV, AttentionCall, Family


def _is_plain(attn: Any) -> bool:
    return type(attn.processor) is HunyuanVideoAttnProcessor2_0 and attn.norm_q is not None


def _lengths(call: AttentionCall, text_tokens: int | None) -> tuple[int, int] | None:
    return None if call.text is None else (call.hidden.shape[1], call.text.shape[1])


def _qkv(call: AttentionCall) -> QKV:
    attn, video, text = call.attn, call.hidden, call.text
    assert text is not None, "lengths() lets no such call through"
    count, double = video.shape[1], attn.add_q_proj is not None

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (attn.heads, -1))

    own = video if double else torch.cat([video, text], 1)
    q, k, v = attn.norm_q(heads(attn.to_q(own))), attn.norm_k(heads(attn.to_k(own))), heads(attn.to_v(own))
    if double:
        added = attn.norm_added_q(heads(attn.add_q_proj(text))), attn.norm_added_k(heads(attn.add_k_proj(text)))
        q, k = (torch.cat(both, 1) for both in zip((q, k), added, strict=True))
        v = torch.cat([v, heads(attn.add_v_proj(text))], 1)
    if call.rotary is not None:
        q, k = (
            torch.cat([apply_rotary_emb(x[:, :count], call.rotary, sequence_dim=1), x[:, count:]], 1) for x in (q, k)
        )
    return q, k, v


def _answer(call: AttentionCall, out: torch.Tensor) -> Any:
    attn, count = call.attn, call.hidden.shape[1]
    video, text = out[:, :count], out[:, count:]
    # Single blocks end attention and MLP with one projection of their own.
    if attn.to_out is not None:
        video = attn.to_out[1](attn.to_out[0](video))
    return video, text if attn.to_add_out is None else attn.to_add_out(text)


HUNYUAN_VIDEO = Family(is_plain=_is_plain, lengths=_lengths, qkv=_qkv, answer=_answer, text_last=True, hides_text=True)
