"""How many tokens a conservative step recomputes, by step, depth and module: ToCa's ratio (arXiv 2410.05317)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenBudget:
    """How the nominal ratio R is spread.

        ratio = R (1 + a_s - 2 a_s s / S) (1 + a_l - 2 a_l l / (L - 1)) f, clamped to [0, 1]

    As published l / (L - 1) is l / 27 for every model, where only DiT has 28 blocks; here it is the depth within the
    block's own list, so that the mean over the blocks is R f whatever their number.

    Attributes:
        step_slope: a_s.
        countdown: s counts the steps to come (more tokens at the end), else the steps done.
        layer_slope: a_l.
        bias, share: b and tau of f = 1 + tau b for the MLP; its partner's f = 1 - (1 - tau) b is 0 or small, and is
            not spent: recomputing some tokens of an attention was found to hurt.
        lists: a factor for each of the model's block lists, in running order; the last one stands for all further ones.
    """

    step_slope: float = 0.0
    countdown: bool = False
    layer_slope: float = 0.0
    bias: float = 0.0
    share: float = 0.6
    lists: tuple[float, ...] = (1.0,)

    def ratio(self, nominal: float, step: int, steps: int, depth: float = 0.0, part: int = 0) -> float:
        """Share of its tokens that an MLP recomputes on a conservative step.

        Args:
            nominal: R.
            depth: of its block in the block list, 0 (first) to 1 (last).
            part: number of the block list.
        """
        s = steps - 1 - step if self.countdown else step
        by_step = 1 + self.step_slope - 2 * self.step_slope * s / steps
        by_layer = 1 + self.layer_slope - 2 * self.layer_slope * depth
        of_module = (1 + self.share * self.bias) * self.lists[min(part, len(self.lists) - 1)]
        # A negative factor is no budget; two of them must not make one.
        return min(1.0, nominal * max(0.0, by_step) * max(0.0, by_layer) * of_module)

    def tokens(self, count: int, nominal: float, step: int, steps: int, depth: float = 0.0, part: int = 0) -> int:
        """The same as a number of tokens out of `count`."""
        # The slopes are decimals: without the last term 0.3 * 10 tokens would be 2.
        return math.floor(self.ratio(nominal, step, steps, depth, part) * count + 1e-9)


BUDGETS: dict[str, TokenBudget] = {
    "even": TokenBudget(),
    "dit-ddim": TokenBudget(step_slope=2.0, countdown=True, layer_slope=-0.2, bias=2.5),
    "dit-ddpm": TokenBudget(step_slope=0.4, countdown=True, layer_slope=0.8, bias=2.5),
    "pixart": TokenBudget(step_slope=0.9, layer_slope=0.6, bias=1.0),
    "open-sora": TokenBudget(bias=1.5, share=0.33),
    "flux": TokenBudget(layer_slope=0.5, lists=(0.4, 1.6)),  # double-stream blocks, single-stream blocks
}
