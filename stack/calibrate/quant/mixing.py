"""Which scheme each layer gets: the cheapest mix within an error, or the least error within a number of bytes. Pure.

Errors of layers add in squares (see `sensitivity.py`), so a mix costs the sum of its layers' squared errors and of
their bytes: a multiple-choice knapsack. Layer by layer, the mixes are kept of which none is both smaller and better
than another (Nemhauser and Ullmann 1969). That is exact as long as there are no more than `FRONT` of them; of more,
evenly many are left out, and the mix found may be off the best one by what lies between neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...core.errors import StackError

FRONT = 8192  # mixes kept per layer


@dataclass(frozen=True)
class MixChoice:
    """One way to keep one layer.

    Attributes:
        scheme: its name.
        bytes: the layer's weight then takes.
        error: squared relative error of the denoiser's output that it causes.
    """

    scheme: str
    bytes: int
    error: float


@dataclass(frozen=True)
class Mix:
    """A scheme for every layer, and what they sum up to.

    Attributes:
        layers: path to scheme.
        error: expected relative error of the denoiser's output, the root of the summed squares.
    """

    layers: Mapping[str, str]
    bytes: int
    error: float


Options = Mapping[str, Sequence[MixChoice]]


def smallest_error(options: Options, max_bytes: int) -> Mix:
    """The mix with the least error that takes at most `max_bytes`.

    Raises:
        StackError: no layers, a layer without choices, or even the smallest mix is larger.
    """
    return _mixed(options, float(max_bytes), by_bytes=True)


def fewest_bytes(options: Options, max_error: float) -> Mix:
    """The smallest mix whose expected relative error is at most `max_error`.

    Raises:
        StackError: no layers, a layer without choices, or even the most exact mix errs more.
    """
    return _mixed(options, max_error**2, by_bytes=False)


@dataclass(frozen=True)
class _Front:
    """Mixes of the layers so far of which none is both lighter and better than another, lightest first.

    Attributes:
        weight, loss: (n,) float64, sums.
        parent: (n,) index in the front of one layer less.
        choice: (n,) index among the last layer's choices.
    """

    weight: torch.Tensor
    loss: torch.Tensor
    parent: torch.Tensor
    choice: torch.Tensor


def _mixed(options: Options, limit: float, by_bytes: bool) -> Mix:
    if not options or not all(options.values()):
        raise StackError("expected some layers to mix schemes for, each with a choice, got none")
    # (weight, loss): what the limit is on, and what shall be small.
    points = [
        torch.tensor([(c.bytes, c.error) if by_bytes else (c.error, c.bytes) for c in each], dtype=torch.float64)
        for each in options.values()
    ]
    lightest = [float(each[:, 0].min()) for each in points]
    if sum(lightest) > limit * (1 + 1e-12):
        least = f"{sum(lightest):.0f} bytes" if by_bytes else f"an error of {math.sqrt(sum(lightest)):.4f}"
        asked = f"{limit:.0f} bytes" if by_bytes else f"{math.sqrt(limit):.4f}"
        raise StackError(f"no mix of these schemes fits: the least is {least}, asked for at most {asked}")
    picked = [each[i] for each, i in zip(options.values(), _walked(_fronts(points, lightest, limit)), strict=True)]
    layers = {path: choice.scheme for path, choice in zip(options, picked, strict=True)}
    return Mix(layers, sum(c.bytes for c in picked), math.sqrt(sum(c.error for c in picked)))


def _fronts(points: Sequence[torch.Tensor], lightest: Sequence[float], limit: float) -> list[_Front]:
    """One front per layer, each grown from the one before by every choice of its layer."""
    zero = torch.zeros(1, dtype=torch.float64)
    front, fronts = _Front(zero, zero, zero.long(), zero.long()), []
    for number, each in enumerate(points):
        weight = (front.weight[:, None] + each[:, 0]).flatten()
        loss = (front.loss[:, None] + each[:, 1]).flatten()
        # What leaves too little for the layers to come is no beginning of any mix.
        room = limit * (1 + 1e-12) - sum(lightest[number + 1 :])
        kept = _undominated(weight, loss, room)
        front = _Front(weight[kept], loss[kept], kept // len(each), kept % len(each))
        fronts.append(front)
    return fronts


def _undominated(weight: torch.Tensor, loss: torch.Tensor, room: float) -> torch.Tensor:
    """Indices, lightest first, of what fits and is better than everything lighter; at most `FRONT` of them."""
    order = torch.argsort(loss, stable=True)
    order = order[torch.argsort(weight[order], stable=True)]
    order = order[weight[order] <= room]
    best = loss[order].cummin(0).values
    order = order[torch.cat([torch.ones(1, dtype=torch.bool), loss[order][1:] < best[:-1]])]
    if len(order) > FRONT:
        order = order[torch.linspace(0, len(order) - 1, FRONT).round().long()]
    return order


def _walked(fronts: Sequence[_Front]) -> list[int]:
    """The choices that lead to the mix with the smallest loss: the last of the last front."""
    at, chosen = len(fronts[-1].weight) - 1, []
    for front in reversed(fronts):
        chosen.append(int(front.choice[at]))
        at = int(front.parent[at])
    return chosen[::-1]
