"""What is known of a forecast before it is made: whether it is of numbers, and how far it goes from the last feature.

A forecast is a sum of terms with known weights, and the norm of every term is known since the full step that made it.
By the triangle inequality it differs from the last feature by at most sum_(i>0) |w_i| |D_i|. So a forecast that blows
up is refused before a block is skipped for it, and nothing has to be read back from the device on a cached step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .forecast import weights
from .predictor import Predictor

# Times the last feature's norm. On shapes-flux SVD-Cache may go 0.2, and TaylorSeer, the farthest of all presets, 3.4
# times its norm (20 steps, interval 7).
FURTHEST = 10.0


@dataclass
class Reach:
    """Norms of what the forecasts of one cell are made of.

    Attributes:
        sound: whether all of them are numbers.
    """

    sound: bool = True
    _unread: list[tuple[Predictor | None, torch.Tensor]] = field(default_factory=list)
    _squares: dict[tuple[float, ...], tuple[Predictor, list[float]]] = field(default_factory=dict)

    def note(self, norms: torch.Tensor, predictor: Predictor | None = None) -> None:
        """A step has stored terms with these norms (k,); of a predictor, or kept by a site itself."""
        self._unread.append((predictor, norms))

    def clear(self) -> None:
        """Nothing is kept any more."""
        self.sound = True
        self._unread.clear()
        self._squares.clear()

    @property
    def pending(self) -> list[torch.Tensor]:
        """Norms that have not been read back."""
        return [norms for _, norms in self._unread]

    def take(self, numbers: Sequence[float]) -> None:
        """The pending norms, read back."""
        self._squares.clear()
        self.sound = all(number - number == 0 for number in numbers)
        start = 0
        for predictor, norms in self._unread:
            mine, start = numbers[start : start + len(norms)], start + len(norms)
            if predictor is not None:
                _, squares = self._squares.setdefault(predictor.nodes, (predictor, [0.0] * len(norms)))
                squares[:] = [a + b * b for a, b in zip(squares, mine, strict=True)]
        self._unread.clear()

    def at(self, x: float) -> float:
        """How far the forecasts at x may go from the last features, all features of a cell together, over their norm.

        Together, because a module that adds next to nothing may well add ten times that.
        """
        return max((_distance(p, x, nodes, squares) for nodes, (p, squares) in self._squares.items()), default=0.0)


def _distance(predictor: Predictor, x: float, nodes: tuple[float, ...], squares: Sequence[float]) -> float:
    factors = weights(predictor.forecast, x, nodes)
    distance = sum(abs(w) * square**0.5 for w, square in zip(factors[1:], squares[1:], strict=True))
    return distance / max(squares[0] ** 0.5, 1e-30)


def read(reaches: Sequence[Reach]) -> None:
    """Read what is pending, in one go: the only number that a cache with a schedule reads back, once per full step."""
    pending = [norms for reach in reaches for norms in reach.pending]
    if not pending:
        return
    numbers = torch.cat(pending).tolist()
    for reach in reaches:
        count = sum(len(norms) for norms in reach.pending)
        if count:
            reach.take(numbers[:count])
            numbers = numbers[count:]
