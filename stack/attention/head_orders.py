"""Which order of its tokens each head of a layer gets, found once in a request."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..models.sdpa import Tensors
from ..runtime.target import Target
from .layers import AttentionCall
from .maps import Grid, computed_share, ranked
from .once_per_request import OncePerRequest
from .output_error import errors_by_count
from .policy_map import policy_map
from .producers import PRODUCERS, SLIDING_TILE, STATIC, few_heads, held_out, losses
from .sparsity import SparsityPolicy
from .token_order import BY_HEAD, ORDERS, RASTER, Shape, TokenOrder, tables


class HeadOrders:
    """Answers for the layers of one model.

    Args:
        target: whose tokens lie on `target.grid()`.
    """

    def __init__(self, target: Target):
        self._target = target
        self._chosen: OncePerRequest[dict[int, torch.Tensor]] = OncePerRequest(target)  # (H,) of every sample
        self._tables: dict[tuple[object, ...], torch.Tensor] = {}

    def of_call(self, call: AttentionCall, policy: SparsityPolicy, grid: Grid) -> TokenOrder | None:
        """The order of a call's tokens; None where they stay as they lie.

        With "by_head" the first sparse call of a layer in a request tries all orders, and each sample keeps the best.
        """
        context = self._target.clock.context
        if (wanted := policy.order_of(grid.image, 1 if context is None else context.whole)) == RASTER:
            return None
        if not (shape := self._shape(call)):
            if wanted != BY_HEAD:
                self._target.journal.warn(f"the tokens lie on no known grid: no {wanted} order, they stay as they lie")
            return None
        q = call.sdpa.q
        found = self._in_sequence(shape, grid, q.device)
        if wanted == BY_HEAD:
            known = self._chosen.once((call.layer, q.shape[1:]), dict)
            samples = self._chosen.samples or range(len(q))
            if not known.keys() >= {*samples}:
                best = best_orders(policy, call.sdpa.plain, found, grid, call.seen, self.places(call, policy, grid))
                for sample, row in zip(samples, best, strict=True):
                    known.setdefault(sample, row)
            chosen = torch.stack([known[sample] for sample in samples])
        else:
            number = list(ORDERS).index(wanted)
            chosen = torch.full(q.shape[:2], number, device=q.device)
        return TokenOrder(found, chosen)

    def places(self, call: AttentionCall, policy: SparsityPolicy, grid: Grid) -> torch.Tensor | None:
        """Where the tokens of a call lie in the picture or video: (S, axes), 0 for others.

        None where that is not known, or of no use to the producer of maps.
        """
        if policy.producer != SLIDING_TILE or not (shape := self._shape(call)):
            return None
        places = torch.zeros(grid.tokens, len(shape), device=call.sdpa.q.device)
        sides = [torch.arange(side) for side in shape]
        places[grid.start : grid.start + grid.image] = torch.cartesian_prod(*sides).to(places)
        return places

    def _shape(self, call: AttentionCall) -> Shape:
        """What the latent's tokens of a call lie on; () where that is not known."""
        shape = self._target.grid()
        return shape if len(shape) in (2, 3) and math.prod(shape) == call.own else ()

    def _in_sequence(self, shape: Shape, grid: Grid, device: torch.device) -> torch.Tensor:
        key = shape, grid, device
        if key not in self._tables:  # one size at a time
            self._tables = {key: tables(shape, grid).to(device)}
        return self._tables[key]


@torch.no_grad()
def best_orders(
    policy: SparsityPolicy,
    tensors: Callable[[], Tensors],
    found: torch.Tensor,
    grid: Grid,
    seen: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which of some orders (N, S) serves each head best: (B, H). No sync.

    Where a share of the blocks is kept that is the one with the smallest error of sampled outputs, mean square over the
    query blocks; for a budget the one whose map computes the fewest scores. The first of equals. The sample is not the
    one that maps are made of: compact patches look better on that than they are.

    Args:
        tensors: queries, keys and values (B, S, H, D) as they lie.
        places: (S, axes), see `HeadOrders.places`.
    """
    return torch.cat([_best(policy, some, found, grid, seen, places) for some in few_heads(*tensors(), grid)], 1)


def _best(
    policy: SparsityPolicy,
    qkv: Tensors,
    found: torch.Tensor,
    grid: Grid,
    seen: torch.Tensor | None,
    places: torch.Tensor | None,
) -> torch.Tensor:
    """The choice for some heads."""
    prices, first = [], torch.zeros(qkv[0].shape[0], qkv[0].shape[2], dtype=torch.long, device=found.device)
    for number in range(len(found)):
        order = TokenOrder(found, first + number)
        q, k, v = (order.put(x) for x in qkv)
        prices.append(_price(policy, q, k, v, grid, seen, placed(places, order, q)))
    return torch.stack(prices).nan_to_num(nan=math.inf).argmin(0)


def placed(places: torch.Tensor | None, order: TokenOrder | None, q: torch.Tensor) -> torch.Tensor | None:
    """Places (S, axes) as those of ordered tokens: (B, S, H, axes)."""
    if places is None:
        return None
    whole = places[None, :, None].expand(*q.shape[:3], -1)
    return whole if order is None else order.put(whole)


def _price(
    policy: SparsityPolicy,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: Grid,
    seen: torch.Tensor | None,
    places: torch.Tensor | None,
) -> torch.Tensor:
    """What a policy's map of ordered tokens (B, S, H, D) costs each head (B, H)."""
    if policy.budget:
        return computed_share(policy_map(policy, q, k, v, grid, seen).kept, grid)
    shares, counts = PRODUCERS[policy.producer](q, k, grid, seen, places), [grid.kept(policy.keep), grid.blocks]
    order_by = shares if policy.producer in STATIC else losses(shares, v, grid)
    given = q, k, v, held_out(q, k, grid, seen), ranked(order_by, grid), grid
    return errors_by_count(*given, torch.tensor(counts, device=q.device))[..., 0].square().mean(-1)
