"""A diffusers attention processor that drops blocks where it may, and is the original one everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.attention import AttentionCall, Family
from .flex import Flex
from .kernels import sparse_attention
from .maps import block_map
from .sparsity import MASKED, NO_TEXT_LENGTH, SparsityPolicy, Tally


@dataclass
class Shared:
    """What the processors of one model have in common.

    Attributes:
        given: arguments of the current denoiser call by name; empty outside of calls. The text's length is read from
            them: single-stream blocks see one joint sequence, which does not show it.
        on: False once the processors are taken off. One that is still held somewhere then calls the original.
    """

    family: Family
    policy: SparsityPolicy
    tally: Tally
    given: Callable[[], Mapping[str, Any]]
    flex: Flex
    on: bool = True


class BlockSparseProcessor:
    """Takes the place of a family's own processor. It passes dense calls on unchanged, so they are bit-identical.

    Not a module: state-dict keys stay as they are.

    Args:
        inner: the processor in whose place it is.
    """

    def __init__(self, inner: Any, shared: Shared) -> None:
        self.inner, self.shared = inner, shared

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a model have the processor in whose place it is."""
        return _itself, (self.inner,)

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

    # Counters and the map's shapes are Python: traced into a compiled block, every step of a schedule would be
    # compiled anew.
    @torch.compiler.disable
    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        call = AttentionCall(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        shared = self.shared
        if not shared.on:
            return call.made_by(self.inner)
        shared.tally.begin()
        text = shared.given().get("encoder_hidden_states") if shared.family.joins_text else None
        lengths = shared.family.lengths(call, None if text is None else text.shape[1])
        reason = self._dense_reason(call, lengths)
        if reason or lengths is None:
            shared.tally.note(reason)
            return call.made_by(self.inner)
        keep, device = shared.policy.keep, hidden_states.device.type
        grid = shared.policy.grid(*lengths, device, shared.family.text_last)
        q, k, v = shared.family.qkv(call)
        out = sparse_attention(q, k, v, block_map(q, k, grid, keep), grid, shared.flex, call.seen)
        shared.tally.note("", grid.density(keep))
        return shared.family.answer(call, out.flatten(2, 3))

    def _dense_reason(self, call: AttentionCall, lengths: tuple[int, int] | None) -> str:
        """Why this call is dense, or ""."""
        family = self.shared.family
        if call.mask is not None and not (family.hides_text and call.hides_keys_only):
            return MASKED
        if family.dispatches and self._parallel_config is not None:
            return "context parallelism"
        step = self.shared.policy.dense_step(self.shared.tally.clock.context)
        if step:
            return step
        return NO_TEXT_LENGTH if lengths is None else self._dense_shape(call, lengths)

    def _dense_shape(self, call: AttentionCall, lengths: tuple[int, int]) -> str:
        attn, device = call.attn, call.hidden.device.type
        return self.shared.policy.dense_shape(*lengths, attn.heads, attn.inner_dim // attn.heads, device)


def _itself(processor: Any) -> Any:
    return processor
