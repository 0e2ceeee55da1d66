"""A diffusers attention processor that drops blocks where it may, and is the original one everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor, _get_qkv_projections
from torch import nn

from .gate import MASKED, NO_TEXT_LENGTH, Policy, Tally
from .kernels import sparse_attention


@dataclass
class TextLength:
    """Text tokens of the current denoiser call. Single-stream blocks see one joint sequence and cannot tell."""

    tokens: int | None = None

    def recording(self, denoiser: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """`forward`, noting the length of its `encoder_hidden_states`."""
        # The class's own signature: what is installed on the instance by now may take anything.
        arguments = signature(type(denoiser).forward)

        @wraps(forward)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            text = arguments.bind(denoiser, *args, **kwargs).arguments.get("encoder_hidden_states")
            self.tokens = None if text is None else text.shape[1]
            return forward(*args, **kwargs)

        return recorded


class BlockSparseProcessor:
    """Stands before a `FluxAttnProcessor`. Dense calls go to it unchanged, so they are bit-identical.

    Not a module: state-dict keys stay as they are.
    """

    def __init__(self, inner: FluxAttnProcessor, policy: Policy, tally: Tally, text: TextLength) -> None:
        self.inner, self.policy, self.tally, self.text = inner, policy, tally, text

    # diffusers sets these two on processors (`set_attention_backend`, context parallelism): they are the inner one's.
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

    # The step is read on the host: compiled, every step of a schedule would be compiled anew.
    @torch.compiler.disable
    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        joint = hidden_states.shape[1]
        if encoder_hidden_states is None:
            text, image = self.text.tokens, joint - (self.text.tokens or 0)
        else:
            text, image = encoder_hidden_states.shape[1], joint
        reason = self._dense_reason(attn, text, image, hidden_states.device.type, attention_mask is not None)
        if reason or text is None:
            self.tally.note(reason)
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        grid = self.policy.grid(image, text, hidden_states.device.type)
        self.tally.note("", grid.density(self.policy.keep))
        q, k, v = joint_qkv(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        out = sparse_attention(q, k, v, grid, self.policy.keep).flatten(2, 3)
        return out if encoder_hidden_states is None else project_out(attn, out, text)

    def _dense_reason(self, attn: FluxAttention, text: int | None, image: int, device: str, masked: bool) -> str:
        """Why this call is dense, or ""."""
        if masked:
            return MASKED
        if self._parallel_config is not None:
            return "context parallelism"
        step = self.policy.dense_step(self.tally.clock.tick)
        if step:
            return step
        if text is None:
            return NO_TEXT_LENGTH
        return self.policy.dense_shape(image, text, attn.heads, attn.head_dim, device)


def joint_qkv(
    attn: FluxAttention, image: torch.Tensor, text: torch.Tensor | None, rotary: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values (B, S, H, D) of the joint sequence, text first, normalised, positions applied.

    In a single-stream block `text` is None and `image` is the joint sequence already.
    """

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, attn.head_dim))

    q, k, v, text_q, text_k, text_v = _get_qkv_projections(attn, image, text)
    q, k, v = attn.norm_q(heads(q)), attn.norm_k(heads(k)), heads(v)
    if text is not None:
        q = torch.cat([attn.norm_added_q(heads(text_q)), q], 1)
        k = torch.cat([attn.norm_added_k(heads(text_k)), k], 1)
        v = torch.cat([heads(text_v), v], 1)
    if rotary is not None:
        q, k = (apply_rotary_emb(x, rotary, sequence_dim=1) for x in (q, k))
    return q, k, v


def project_out(attn: FluxAttention, out: torch.Tensor, text: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention output (B, S, H * D) of a double-stream block to (image, text) hidden states."""
    text_out, image_out = out[:, :text].contiguous(), out[:, text:].contiguous()
    return attn.to_out[1](attn.to_out[0](image_out)), attn.to_add_out(text_out)
