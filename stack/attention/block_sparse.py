"""Block-sparse attention as one of the back ends of an attention layer."""

from __future__ import annotations

import torch

from .flex import Flex
from .kernels import sparse_attention
from .layers import MORE, AttentionCall
from .maps import Grid, block_map
from .sparsity import MASKED, NO_TEXT_LENGTH, SparsityPolicy, Tally


class BlockSparse:
    """Drops blocks of keys where the policy allows it.

    Args:
        flex: what CUDA has compiled so far.
    """

    def __init__(self, policy: SparsityPolicy, tally: Tally, flex: Flex):
        self.policy, self.tally, self.flex = policy, tally, flex

    def unfit(self, call: AttentionCall) -> str:
        """Why this call is dense, or ""."""
        if step := self.policy.dense_step(self.tally.clock.context):
            return step
        if call.unusual:
            return call.unusual
        if call.hides == MORE:
            return MASKED
        if not call.own:
            return NO_TEXT_LENGTH
        q = call.sdpa.q
        return self.policy.dense_shape(call.own, call.others, q.shape[1], q.shape[3], q.device.type)

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """Attention by a map of its own. (B, S, H, D) in and out."""
        grid = self._grid(call)
        return sparse_attention(q, k, v, block_map(q, k, grid, self.policy.keep), grid, self.flex, call.seen)

    def note(self, reason: str, call: AttentionCall | None) -> None:
        """Counts a call, with its share of computed scores."""
        self.tally.note(reason, 1.0 if call is None or reason else self._grid(call).density(self.policy.keep))

    def _grid(self, call: AttentionCall) -> Grid:
        device = call.sdpa.q.device.type
        return self.policy.grid(call.own, call.others, device, call.layout.others == "behind")
