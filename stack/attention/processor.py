"""A diffusers attention processor that drops blocks where it may, and is the original one everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.attention import AttentionCall, Family
from .flex import Flex
from .kernels import dense, sparse_attention
from .maps import Grid
from .reuse import Group, Look, Maps, parts
from .sparsity import ANCHOR, MASKED, NO_TEXT_LENGTH, SparsityPolicy, Tally


@dataclass
class Shared:
    """What the processors of one model have in common.

    Attributes:
        given: arguments of the current denoiser call by name; empty outside of calls. They tell how long the text is:
            single-stream blocks see one joint sequence and cannot.
    """

    family: Family
    policy: SparsityPolicy
    tally: Tally
    maps: Maps
    given: Callable[[], Mapping[str, Any]]
    flex: Flex


class BlockSparseProcessor:
    """Stands before a family's own processor. Dense calls go to it unchanged, so they are bit-identical.

    Not a module: state-dict keys stay as they are.

    Args:
        inner: the processor in whose place it is.
        layer: number of the attention layer.
    """

    def __init__(self, inner: Any, layer: int, shared: Shared) -> None:
        self.inner, self.layer, self.shared = inner, layer, shared

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
        self.shared.tally.begin()
        text = self.shared.given().get("encoder_hidden_states") if self.shared.family.joins_text else None
        lengths = self.shared.family.lengths(call, None if text is None else text.shape[1])
        reason = self._dense_reason(call, lengths)
        if reason or lengths is None:
            self.shared.tally.note(reason)
            return call.made_by(self.inner)
        grid = self.shared.policy.grid(*lengths, hidden_states.device.type, self.shared.family.text_last)
        groups = self.shared.maps.groups(self.layer, hidden_states, grid)
        full = all(group.anchor for group in groups)
        why = self._dense_shape(call, lengths, anchor=True)
        if full and why and groups[0].held is None:
            self.shared.tally.note(ANCHOR, anchor=True)
            return call.made_by(self.inner)
        return self.shared.family.answer(call, self._attend(call, grid, groups, dense_anchors=bool(why)))

    def _attend(self, call: AttentionCall, grid: Grid, groups: list[Group], dense_anchors: bool) -> torch.Tensor:
        """Attention output (B, S, H D), every group of samples by its own maps."""
        shared = self.shared
        q, k, v = shared.family.qkv(call)
        out = torch.empty_like(q) if len(groups) > 1 else q
        density = 0.0
        for group, look in parts(groups, Look(q, k, grid, call.seen)):
            values = v if len(groups) == 1 else v[list(group.places)]
            if group.anchor and dense_anchors:
                shared.maps.keep(look, group)
                part, computed = dense(look.q, look.k, values, look.seen), 1.0
            else:
                indices = shared.maps.of(look, group)
                part = sparse_attention(look.q, look.k, values, indices, grid, shared.flex, look.seen)
                computed = grid.density(shared.policy.kept(group.anchor))
            density += computed * len(group.places) / len(q)
            if len(groups) == 1:
                out = part
            else:
                out[list(group.places)] = part
        full = all(group.anchor for group in groups)
        shared.tally.note(ANCHOR if full and dense_anchors else "", density, anchor=full)
        return out.flatten(2, 3)

    def _dense_reason(self, call: AttentionCall, lengths: tuple[int, int] | None) -> str:
        """Why this call is dense, or ""."""
        family = self.shared.family
        if call.mask is not None and not (family.hides_text and call.hides_keys_only):
            return MASKED
        if family.dispatches and self._parallel_config is not None:
            return "context parallelism"
        step = self.shared.policy.dense_step(self.shared.tally.clock.tick)
        if step:
            return step
        return NO_TEXT_LENGTH if lengths is None else self._dense_shape(call, lengths)

    def _dense_shape(self, call: AttentionCall, lengths: tuple[int, int], anchor: bool = False) -> str:
        attn, device = call.attn, call.hidden.device.type
        return self.shared.policy.dense_shape(*lengths, attn.heads, attn.inner_dim // attn.heads, device, anchor)
