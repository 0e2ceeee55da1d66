"""What became of the attention calls of a request, one entry per call; read from the device only when asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from ..bounds import dropped_mass_bound
from ..runtime.step_clock import Clock
from .token_order import ORDERS, RASTER


@dataclass(frozen=True)
class Attended:
    """One attention call.

    Attributes:
        reason: why it was left to others; "" where the back end computed it.
        layer: path of the module; "" where torch was not asked for attention.
        step: of the sampler; -1 outside a request.
        density: share of its scores that was computed.
        kept: mean share of the key blocks that a query block attended to; 1 of a dense call.
        dropped: mean share of the softmax mass that was left out: 0 of a dense call, None where it was not measured.
        error: mean relative error of the sampled outputs; None where it was not measured.
        orders: (B, H) which of `token_order.ORDERS` each head has; None where tokens stay as they lie.
    """

    reason: str
    layer: str = ""
    step: int = -1
    density: float | torch.Tensor = 1.0
    kept: float | torch.Tensor = 1.0
    dropped: float | torch.Tensor | None = None
    error: float | torch.Tensor | None = None
    orders: torch.Tensor | None = None


@dataclass
class Tally:
    """Attention calls of the current pipeline call, asked of one back end."""

    clock: Clock
    noted: list[Attended] = field(default_factory=list)
    _page: int = -1

    def note(self, reason: str, layer: str = "", **measured: Any) -> None:
        """One attention call: taken where `reason` is empty. `measured` are the other attributes of `Attended`."""
        context = self.clock.context
        if context is not None and context.page != self._page:
            self.reset()
            self._page = context.page
        self.noted.append(Attended(reason, layer, -1 if context is None else context.at, **measured))

    def reset(self) -> None:
        """Forget the request."""
        self.noted, self._page = [], -1

    @property
    def calls(self) -> int:
        """Attention calls so far."""
        return len(self.noted)

    @property
    def taken(self) -> int:
        """Calls that the back end computed."""
        return sum(not call.reason for call in self.noted)

    @property
    def left(self) -> Counter[str]:
        """Calls that it left to others, by reason."""
        return Counter(call.reason for call in self.noted if call.reason)

    def figures(self) -> dict[str, Any]:
        """Sparse and dense calls, reasons, and the mean share of scores computed over all of them.

        Of the sparse calls also the mean share of the softmax mass that was left out, None where the producer of their
        maps does not measure it, what follows for the error of outputs, in units of the spread of their values (the
        mean over the sampled queries of each one's bound), and, where it was measured, the mean error of the sampled
        outputs. `token_orders` has the share of the heads by the order in which their tokens were cut into blocks.

        `by_layer` has the kept share of the blocks and the dropped mass of each layer as lists over the steps, calls of
        a step averaged; None stands for a step without a call, and for what was not measured.
        """
        sparse = [call for call in self.noted if not call.reason]
        dropped = _mean(call.dropped for call in sparse)
        return {
            "sparse_calls": self.taken,
            "dense_calls": dict(self.left),
            "density": _mean(call.density for call in self.noted),
            "dropped_mass": dropped,
            "error_bound": None if dropped is None else dropped_mass_bound(dropped, 1.0),
            "output_error": _mean(call.error for call in sparse),
            "token_orders": _shares_of_orders([call.orders for call in sparse]),
            "by_layer": self._by_layer(),
        }

    def _by_layer(self) -> dict[str, dict[str, list[float | None]]]:
        calls: dict[tuple[str, int], list[Attended]] = {}
        for call in self.noted:
            if call.layer and call.step >= 0:
                calls.setdefault((call.layer, call.step), []).append(call)
        steps = range(max((step for _, step in calls), default=-1) + 1)
        return {
            layer: {
                "kept": [_mean(call.kept for call in calls.get((layer, step), ())) for step in steps],
                "dropped_mass": [_mean(call.dropped for call in calls.get((layer, step), ())) for step in steps],
            }
            for layer in dict.fromkeys(layer for layer, _ in calls)
        }


def _mean(values: Iterable[float | torch.Tensor | None]) -> float | None:
    """The mean of what was measured; None where nothing was."""
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None


def _shares_of_orders(calls: list[torch.Tensor | None]) -> dict[str, float]:
    """The share of heads by the order of their tokens, mean over the calls."""
    raster = torch.tensor(list(ORDERS).index(RASTER))
    chosen = [raster if each is None else each for each in calls]
    shares = {name: _mean((each == number).float().mean() for each in chosen) for number, name in enumerate(ORDERS)}
    return {name: share for name, share in shares.items() if share}
