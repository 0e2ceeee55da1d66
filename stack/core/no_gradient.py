"""Values that have no gradient although one may be asked for."""

from __future__ import annotations

import torch

from .errors import StackError


class NoGradient(torch.autograd.Function):
    """Passes a value on, and raises where a gradient of it is asked for: a silent zero would be wrong.

    `NoGradient.apply(value, wanted, why)`: `wanted` is a tensor that requires gradients, `why` the error's text.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, value: torch.Tensor, _: torch.Tensor, why: str
    ) -> torch.Tensor:
        ctx.why = why  # type: ignore[attr-defined]  # torch keeps what is set on it
        return value

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *_: torch.Tensor) -> None:
        raise StackError(ctx.why)  # type: ignore[attr-defined]  # set above
