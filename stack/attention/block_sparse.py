"""Block-sparse attention as one of the back ends of an attention layer."""

from __future__ import annotations

import torch

from ..core.readback import reads_are_free
from .flex import Flex
from .kernels import sparse_attention
from .layers import MORE, AttentionCall
from .maps import Grid, block_map, computed_share, dropped_mass, mass_map, with_dense_heads
from .output_error import error_map
from .producers import MEASURED, PRODUCERS, sample_of
from .sparsity import MASKED, NO_TEXT_LENGTH, OUTSIDE, SparsityPolicy
from .tally import Tally


class BlockSparse:
    """Drops blocks of keys where the policy allows it.

    Args:
        flex: what CUDA has compiled so far.
    """

    def __init__(self, policy: SparsityPolicy, tally: Tally, flex: Flex):
        self.policy, self.tally, self.flex = policy, tally, flex
        # The policy and the map of the call that was asked for last, and what is noted of it.
        self._of_call, self._kept = policy, torch.empty(0)
        self._measured: dict[str, torch.Tensor | None] = {}

    def unfit(self, call: AttentionCall) -> str:
        """Why this call is dense, or ""."""
        context = self.tally.clock.context
        if context is None:
            return OUTSIDE
        if step := self.policy.dense_step(context):
            return step
        if call.unusual:
            return call.unusual
        if call.hides == MORE:
            return MASKED
        if not call.own:
            return NO_TEXT_LENGTH
        self._of_call, q = self.policy.of_call(call.layer, context), call.sdpa.q
        shape = self._of_call.dense_shape(call.own, call.others, q.shape[1], q.shape[3], q.device.type)
        return shape or self._map(call)

    def _map(self, call: AttentionCall) -> str:
        """Makes the map of a call; says why it is not worth its use, where that can be read without waiting."""
        q, k, v = (x.detach() for x in call.sdpa.plain())
        policy, grid = self._of_call, self._grid(call)
        self._kept, dropped, error = _made(policy, q, k, v, grid, call.seen)
        density = computed_share(self._kept, grid)
        self._measured = {
            "density": density.mean(),
            "kept": self._kept.float().mean(),
            "dropped": dropped,
            "error": error,
        }
        if policy.budget and reads_are_free(q.device):
            in_time = float(density.clamp(max=policy.densest(q.device.type)).mean())
            return policy.dense_map(grid, in_time, q.shape[2], q.shape[3], q.device.type)
        return ""

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """Attention by the map that `unfit` made for this call. (B, S, H, D) in and out."""
        return sparse_attention(q, k, v, self._kept, self._grid(call), self.flex, call.seen)

    def note(self, reason: str, call: AttentionCall | None) -> None:
        """Counts a call, with what was measured of its map."""
        self.tally.note(reason, call.layer if call else "", **({"dropped": 0.0} if reason else self._measured))

    def _grid(self, call: AttentionCall) -> Grid:
        device = call.sdpa.q.device.type
        return self._of_call.grid(call.own, call.others, device, call.layout.others == "behind")


def _made(
    policy: SparsityPolicy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, seen: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The map that a policy asks for and, where measured, the mean mass that it drops and its outputs' mean error."""
    if policy.producer != MEASURED:
        return block_map(PRODUCERS[policy.producer](q, k, grid, seen), grid, policy.keep), None, None
    sample = sample_of(q, k, grid, seen)
    shares, error = sample.shares(grid), None
    if policy.max_error is not None:
        kept, errors = error_map(q, k, v, sample, shares, grid, policy.max_error)
        error = errors.mean()
    elif policy.max_mass is not None:
        kept = mass_map(shares, grid, policy.max_mass)
    else:
        kept = block_map(shares, grid, policy.keep)
    if policy.budget:
        kept = with_dense_heads(kept, grid, policy.densest(q.device.type))
    return kept, dropped_mass(shares, kept).mean(), error
