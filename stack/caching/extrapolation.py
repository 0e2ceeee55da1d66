"""What is known of a forecast before it is made: whether it is of numbers, and how far it goes from the last feature.

A forecast is a sum of terms with known weights, and the norm of every term is known since the full step that made it.
By the triangle inequality it differs from the last feature by at most sum_(i>0) |w_i| |D_i|. So a forecast that blows
up is refused before a block is skipped for it, and no cached step waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..runtime.readback import Readback
from .forecast import weights
from .predictor import Predictor

# Times the last feature's norm. On shapes-flux SVD-Cache may go 0.2, and TaylorSeer, the farthest of all presets, 3.4
# times its norm (20 steps, interval 7).
FURTHEST = 10.0


Norms = list[tuple[Predictor | None, torch.Tensor]]  # (k,) each


@dataclass
class ExtrapolationGuard:
    """Norms of what the forecasts of one cell are made of.

    Attributes:
        sound: whether all of them are numbers.
    """

    sound: bool = True
    _unread: Norms = field(default_factory=list)
    _awaited: Norms = field(default_factory=list)
    _squares: dict[tuple[float, ...], tuple[Predictor, list[float]]] = field(default_factory=dict)

    def note(self, norms: torch.Tensor, predictor: Predictor | None = None) -> None:
        """A step has stored terms with these norms (k,); of a predictor, or kept by a site itself."""
        self._unread.append((predictor, norms))

    def clear(self) -> None:
        """Nothing is kept any more."""
        self.sound = True
        self._unread, self._awaited = [], []
        self._squares.clear()

    def send(self) -> Norms:
        """The norms noted since the last call; until `take` is called for them nothing is known."""
        if self._unread:
            self._awaited, self._unread = self._unread, []
            self._squares.clear()
            return self._awaited
        return []

    def take(self, sent: Norms, numbers: Sequence[float]) -> None:
        """The numbers of norms that were sent; passed over if others have been sent since."""
        if sent is not self._awaited:
            return
        self.sound = all(number - number == 0 for number in numbers)
        start = 0
        for predictor, norms in sent:
            mine, start = numbers[start : start + len(norms)], start + len(norms)
            if predictor is not None:
                _, squares = self._squares.setdefault(predictor.nodes, (predictor, [0.0] * len(norms)))
                squares[:] = [a + b * b for a, b in zip(squares, mine, strict=True)]
        self._awaited = []

    def at(self, x: float) -> float:
        """How far the forecasts at x may go from the last features, all features of a cell together, over their norm.

        Together, because a module that adds next to nothing may well add ten times that.
        """
        return max((_distance(p, x, nodes, squares) for nodes, (p, squares) in self._squares.items()), default=0.0)


def _distance(predictor: Predictor, x: float, nodes: tuple[float, ...], squares: Sequence[float]) -> float:
    factors = weights(predictor.forecast, x, nodes)
    distance = sum(abs(w) * square**0.5 for w, square in zip(factors[1:], squares[1:], strict=True))
    return distance / max(squares[0] ** 0.5, 1e-30)


class NormReader:
    """Reads norms back without waiting for the device: asked at every step, it takes what has arrived.

    On a CPU that is everything. On an accelerator the host runs ahead: a forecast that goes too far may be used once or
    twice before that is known.
    """

    def __init__(self) -> None:
        self._coming: list[tuple[Readback, list[tuple[ExtrapolationGuard, Norms]]]] = []

    def clear(self) -> None:
        """Nothing is waited for any more."""
        self._coming.clear()

    def poll(self, reaches: Sequence[ExtrapolationGuard]) -> None:
        """Send what these have noted, and take what has arrived."""
        parts = [(reach, sent) for reach in reaches if (sent := reach.send())]
        if parts:
            self._coming.append((Readback(torch.cat([norms for _, sent in parts for _, norms in sent])), parts))
        while self._coming and self._coming[0][0].ready:
            readback, parts = self._coming.pop(0)
            numbers = readback.read()
            for reach, sent in parts:
                count = sum(len(norms) for _, norms in sent)
                reach.take(sent, numbers[:count])
                numbers = numbers[count:]
