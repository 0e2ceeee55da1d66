"""Block-sparse attention as one of the back ends of an attention layer."""

from __future__ import annotations

import torch

from ..core.readback import reads_are_free
from .flex import Flex
from .kernels import sparse_attention
from .layers import MORE, AttentionCall
from .maps import Grid, block_map, computed_share, dropped_mass, mass_map
from .producers import MEASURED, PRODUCERS
from .sparsity import MASKED, NO_TEXT_LENGTH, SparsityPolicy, Tally


class BlockSparse:
    """Drops blocks of keys where the policy allows it.

    Args:
        flex: what CUDA has compiled so far.
    """

    def __init__(self, policy: SparsityPolicy, tally: Tally, flex: Flex):
        self.policy, self.tally, self.flex = policy, tally, flex
        # The map of the call that was asked for last, its share of computed scores and, if measured, of dropped mass.
        self._kept = self._density = torch.empty(0)
        self._dropped: torch.Tensor | None = None

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
        shape = self.policy.dense_shape(call.own, call.others, q.shape[1], q.shape[3], q.device.type)
        return shape or self._map(call)

    def _map(self, call: AttentionCall) -> str:
        """Makes the map of a call; says why it is not worth its use, where that can be read without waiting."""
        (q, k, _), policy, grid = call.sdpa.plain(), self.policy, self._grid(call)
        shares = PRODUCERS[policy.producer](q.detach(), k.detach(), grid, call.seen)
        if policy.max_mass is None:
            kept = block_map(shares, grid, policy.keep)
        else:
            kept = mass_map(shares, grid, policy.max_mass)
        self._kept, self._density = kept, computed_share(kept, grid)
        self._dropped = dropped_mass(shares, kept).mean() if policy.producer == MEASURED else None
        if policy.max_mass is not None and reads_are_free(q.device):
            return policy.dense_map(grid, float(self._density), q.shape[2], q.shape[3], q.device.type)
        return ""

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """Attention by the map that `unfit` made for this call. (B, S, H, D) in and out."""
        return sparse_attention(q, k, v, self._kept, self._grid(call), self.flex, call.seen)

    def note(self, reason: str, call: AttentionCall | None) -> None:
        """Counts a call, with its shares of computed scores and of dropped mass."""
        if call is None or reason:
            self.tally.note(reason)
        else:
            self.tally.note("", self._density, self._dropped)

    def _grid(self, call: AttentionCall) -> Grid:
        device = call.sdpa.q.device.type
        return self.policy.grid(call.own, call.others, device, call.layout.others == "behind")
