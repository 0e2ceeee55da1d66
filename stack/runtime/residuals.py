"""Whether a control net still does what it did on the step before."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from .values import flat

SAMPLES = 64  # numbers of every residual that are compared with those of the step before
STEADY = 0.1  # a relative change of residuals from one step to the next that is never a jump
GROWTH = 3.0  # a change of more than this times the one before is a jump
FIRST = 0.1  # stands for the change before the first


class ResidualWatch:
    """Notices residuals of a control net that change by more than the step from one noise level to the next explains.

    They are computed anew on every step. A net whose guidance ends, begins, is scaled otherwise or sees another picture
    makes them jump. A sample of their numbers is compared with that of the step before: one number is read from the
    device per step, beside a control net that has run on it. A jump is a relative change above `STEADY` and above
    `GROWTH` times the change before. Not seen: changes that come step by step.
    """

    def __init__(self) -> None:
        self._jumps = 0
        self._last: dict[str, tuple[int, list[Any], torch.Tensor, float]] = {}  # request, layout, sample, change

    def __call__(self, request: int, branch: str, given: Any) -> Hashable:
        """Number, shapes and dtypes of the residuals, and how often they have jumped so far."""
        tensors = [x for x in flat((given,)) if isinstance(x, torch.Tensor)]
        layout = [(x.shape, x.dtype, x.device) for x in tensors]
        now = _sample(tensors)
        before = self._last.get(branch)
        change = FIRST
        if before is not None and before[:2] == (request, layout):
            _, _, sample, change = before
            moved = float((now - sample).norm() / sample.norm().clamp_min(torch.finfo(now.dtype).tiny))
            if moved > max(STEADY, GROWTH * change):
                self._jumps += 1
            else:
                change = moved
        self._last[branch] = request, layout, now, change
        return tuple(layout), self._jumps


def _sample(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Numbers from all over the tensors, in one row of fp32."""
    if not tensors:
        return torch.zeros(0)
    rows = [x.detach().reshape(-1)[:: max(1, x.numel() // SAMPLES)].float() for x in tensors]
    return torch.cat([row.to(rows[0].device) for row in rows])
