"""Block-sparse attention as one of the back ends of an attention layer."""

from __future__ import annotations

import torch

from ..core.facts import Machine
from ..core.readback import reads_are_free
from ..models.sdpa import Tensors
from . import sparge
from .cost import rate_of
from .flex import Flex
from .head_orders import HeadOrders, placed
from .kernels import sparse_attention
from .layers import MORE, AttentionCall
from .maps import Grid, computed_share
from .policy_map import policy_map
from .sparsity import MASKED, NO_TEXT_LENGTH, OUTSIDE, SPARGE, SparsityPolicy
from .tally import Tally
from .token_order import TokenOrder


class BlockSparse:
    """Drops blocks of keys where the policy allows it.

    Args:
        flex: what CUDA has compiled so far.
        orders: in which order the tokens are cut into blocks.
    """

    def __init__(self, policy: SparsityPolicy, machine: Machine, tally: Tally, flex: Flex, orders: HeadOrders):
        self.policy, self.machine, self.tally, self.flex, self.orders = policy, machine, tally, flex, orders
        # The policy, the order and the map of the call that was asked for last, and what is noted of it.
        self._of_call, self._kept = policy, torch.empty(0)
        self._order: TokenOrder | None = None
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
        if self.policy.kernel == SPARGE and (reason := call.recorded or sparge.unfit(call.sdpa.tokens, call.seen)):
            return reason
        shape = self._of_call.dense_shape(call.own, call.others, rate_of(self.machine, q.dtype))
        return shape or self._map(call)

    def _map(self, call: AttentionCall) -> str:
        """Makes the map of a call; says why it is not worth its use, where that can be read without waiting."""
        policy, grid = self._of_call, self._grid(call)
        self._order = self.orders.of_call(call, policy, grid)
        q, k, v = self._ordered(*(x.detach() for x in call.sdpa.plain()))
        places = placed(self.orders.places(call, policy, grid), self._order, q)
        made = policy_map(policy, q, k, v, grid, call.seen, places)
        density, self._kept = computed_share(made.kept, grid), made.kept
        self._measured = {
            "density": density.mean(),
            "kept": made.kept.float().mean(),
            "dropped": made.dropped,
            "error": made.error,
            "orders": None if self._order is None else self._order.chosen,
        }
        if policy.budget and reads_are_free(q.device):
            rate = rate_of(self.machine, q.dtype)
            in_time = float(density.clamp(max=policy.densest(rate)).mean())
            return policy.dense_map(grid, in_time, rate)
        return ""

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """Attention by the map that `unfit` made for this call. (B, S, H, D) in and out."""
        given = (*self._ordered(q, k, v), self._kept, self._grid(call))
        if self.policy.kernel == SPARGE:
            out = sparge.sparge_attention(*given, self.machine.capability)
        else:
            out = sparse_attention(*given, self.flex, call.seen)
        return out if self._order is None else self._order.undo(out)

    def _ordered(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        order = self._order
        return (q, k, v) if order is None else (order.put(q), order.put(k), order.put(v))

    def note(self, reason: str, call: AttentionCall | None) -> None:
        """Counts a call, with what was measured of its map."""
        self.tally.note(reason, call.layer if call else "", **({"dropped": 0.0} if reason else self._measured))

    def _grid(self, call: AttentionCall) -> Grid:
        device = call.sdpa.q.device.type
        return self._of_call.grid(call.own, call.others, device, call.layout.others == "behind")
