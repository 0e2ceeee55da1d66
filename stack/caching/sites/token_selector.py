"""Which tokens each MLP recomputes on a conservative step: chosen once per module and step, for all branches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...core.readback import sent
from ...runtime.step import StepContext
from ..controller import CacheController
from ..tokenwise.selection import flat_rows, older, random_scores, shared_by_halves, value_scores, with_bonus
from ..tokenwise.tokens import TokenChoices


@dataclass(frozen=True)
class Place:
    """An MLP whose tokens are chosen.

    Attributes:
        key: path of the module that ends it, in the denoiser.
        number: seeds its choices.
        part: number of its block list.
        depth: of its block in that list, 0 (first) to 1 (last).
    """

    key: str
    number: int
    part: int = 0
    depth: float = 0.0


class TokenSelector:
    """Chooses the tokens of every MLP.

    The branch that asks first in a step decides for all of them: guidance takes differences of branches, and different
    tokens would show in them. Ages and value scores are therefore kept once, in the controller's shared state.

    Args:
        choices: by what, and how many.
        interval: of full steps, in which a token's age is counted.
        head_dim: size of an attention head, for value scores.
        halves: whether the halves of a batch are guidance branches.
        grid: of the output stream's tokens in the current request; () where they lie on none.
    """

    def __init__(
        self,
        controller: CacheController,
        choices: TokenChoices,
        interval: int,
        head_dim: int,
        halves: bool,
        grid: Callable[[], tuple[int, ...]],
    ):
        self.controller, self.choices, self.head_dim, self.halves = controller, choices, head_dim, halves
        self.interval, self.grid = interval, grid
        self._at: tuple[int, int] = (-1, -1)  # request and step of the rows that are kept
        self._places: list[Place] = []
        self._sizes: list[float] = []

    @property
    def observes(self) -> bool:
        """Whether it wants to see attention values."""
        return self.choices.select == "values"

    def add(self, place: Place, size: float) -> None:
        """An MLP whose tokens will be chosen, and its multiply-accumulates per token."""
        self._places.append(place)
        self._sizes.append(size)

    @property
    def chosen_share(self) -> float:
        """Work of the chosen tokens on the current step, as a share of that of all tokens, all MLPs together."""
        kept, context = self.controller.slots[0].kept, self.controller.now
        chosen = whole = 0.0
        for place, size in zip(self._places, self._sizes, strict=True):
            if place.key in kept:
                chosen += size * self._count(place, context, kept[place.key])
                whole += size * kept[place.key].shape[1]
        return chosen / whole if whole else 0.0

    def observe(self, place: Place, values: torch.Tensor) -> None:
        """A full step made these attention values (B, N, H * head_dim)."""
        self.controller.shared[f"{place.key}/values"] = value_scores(values, self.head_dim)

    def refresh(self, place: Place) -> None:
        """A full step computed every token."""
        self.controller.shared.pop(f"{place.key}/ages", None)

    def rows(self, place: Place, like: torch.Tensor) -> torch.Tensor | None:
        """Rows to compute, as `flat_rows`; None for all of them.

        Args:
            like: the module's output (B, N, D) on the last full step.
        """
        shared, context = self.controller.shared, self.controller.now
        if self._at != (context.request, context.step):
            self._at = (context.request, context.step)
            for key in [key for key in shared if "/rows/" in key]:
                del shared[key]
        if self._count(place, context, like) == like.shape[1]:
            self.refresh(place)
            return None
        key = _key(place, like)
        if key not in shared:
            self._choose_all(context, like.device)
        return shared[key]

    def _count(self, place: Place, context: StepContext, like: torch.Tensor) -> int:
        p = self.choices
        return p.spread.tokens(like.shape[1], p.ratio, context.step, context.steps, place.depth, place.part)

    def _choose_all(self, context: StepContext, device: torch.device) -> None:
        """Choose for every MLP of this branch that has not been chosen for.

        Random scores are made on the host and ranked there, so that every device computes the same tokens. All their
        rows go to the device together, at the step's first MLP: one transfer, that nobody waits for.
        """
        shared, kept, chosen = self.controller.shared, self.controller.slots[0].kept, {}
        for place in self._places:
            like = kept.get(place.key)
            if like is not None and _key(place, like) not in shared:
                count = self._count(place, context, like)
                if count < like.shape[1]:
                    chosen[_key(place, like)] = self._choose(place, count, context, like)
        away = [key for key, rows in chosen.items() if rows.device != device]
        shared.update(chosen)
        shared.update(zip(away, sent([chosen[key] for key in away], device), strict=True))

    def _choose(self, place: Place, count: int, context: StepContext, like: torch.Tensor) -> torch.Tensor:
        shared, key, (batch, tokens) = self.controller.shared, f"{place.key}/ages", like.shape[:2]
        scores = self._scores(place, context, like)
        ages = shared.get(key)
        if ages is None or ages.shape != scores.shape:
            ages = torch.zeros_like(scores)
        # The published bonus divides a token's age by the interval.
        scores = self._raised(scores.add(ages, alpha=self.choices.stale / self.interval), tokens)
        chosen = scores.topk(count, dim=1).indices
        shared[key] = older(ages, chosen)
        return flat_rows(chosen, tokens, batch)

    def _scores(self, place: Place, context: StepContext, like: torch.Tensor) -> torch.Tensor:
        """Scores (1 or B, N): of the tokens' values where they are wanted and known, else random."""
        if self.observes:
            known = self.controller.shared.get(f"{place.key}/values")
            if known is not None and known.shape == like.shape[:2]:
                return shared_by_halves(known) if self.halves and len(known) % 2 == 0 else known
            self.controller.journal.warn(f"no attention values seen for {place.key}: tokens chosen at random")
        return random_scores(like.shape[1], context.step, place.number)

    def _raised(self, scores: torch.Tensor, tokens: int) -> torch.Tensor:
        slot, bonus = self.choices.grid
        if not slot:
            return scores
        grid = self.grid()
        if not grid:
            self.controller.journal.warn(f"the tokens lie on no known grid: no bonus for cells of {slot} x {slot}")
        # Other modules have other tokens: the text's, or those of both streams.
        return with_bonus(scores, grid, slot, bonus) if grid and math.prod(grid) == tokens else scores


def _key(place: Place, like: torch.Tensor) -> str:
    """Where a place's rows are kept; a branch may have a longer text."""
    batch, tokens = like.shape[:2]
    return f"{place.key}/rows/{batch}x{tokens}"
