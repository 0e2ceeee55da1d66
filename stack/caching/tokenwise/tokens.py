"""The choices of ToCa and DuCa."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import StackError, choose
from ..options import Options
from .budgets import BUDGETS, TokenBudget
from .cycles import Cycle
from .selection import RULES


@dataclass(frozen=True)
class TokenChoices(Options):
    """How conservative and aggressive steps follow each other, and which tokens a conservative one recomputes.

    Attributes:
        cycle: kinds of the steps after a full one, repeated: "ca" is DuCa, "c" ToCa.
        pace: how the interval changes over a request, a row of `stack.caching.tokenwise.cycles.PACES`.
        ratio: R, share of the tokens whose MLP a conservative step recomputes, before the budget's factors.
        budget: how R is spread over steps and blocks, a row of `stack.caching.tokenwise.budgets.BUDGETS`.
        select: "random", or "values" (tokens whose attention values are small).
        stale: what a token gains in score by waiting a whole interval.
        grid: (side, bonus): the best image token in every slot of side x side gains this share of its score.

    Raises:
        StackError: a value outside its range.
    """

    cycle: str = "ca"
    pace: str = "even"
    ratio: float = 0.1
    budget: str = "even"
    select: str = "random"
    stale: float = 0.25
    grid: tuple[int, float] = (0, 0.0)

    def check_values(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise StackError(f"ratio must be in [0, 1], got {self.ratio}: it is a share of the tokens")
        if self.budget not in BUDGETS:
            raise choose("budget of the cache", self.budget, list(BUDGETS))
        if self.select not in RULES:
            raise choose("selection of tokens", self.select, RULES)
        if self.stale < 0 or len(self.grid) != 2 or min(self.grid) < 0:
            raise StackError(f"stale and grid must not be negative, got stale={self.stale}, grid={self.grid}")
        Cycle(between=self.cycle, pace=self.pace)  # checks its own values, also where a calibrated schedule is used

    @property
    def spread(self) -> TokenBudget:
        """How the ratio is spread."""
        return BUDGETS[self.budget]

    @property
    def token_words(self) -> str:
        """What a conservative step does, in one line."""
        how = "at random" if self.select == "random" else "by small attention values"
        return (
            f"conservative steps reuse every attention and recompute the MLPs of {self.ratio:.0%} of the tokens "
            f"(budget {self.budget}), chosen {how}, the long-cached ones first"
        )
