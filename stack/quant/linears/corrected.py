"""What calibration adds around a converted linear: balanced inputs, and a low-rank branch in 16 bits."""

from __future__ import annotations

import torch
from torch import nn


class Balanced(nn.Module):
    """A converted linear whose inputs are divided, channel by channel, by what its weights were multiplied with.

    Args:
        inner: takes (..., K).
        divisor: (K,), powers of two, see `stack.quant.rounding.smoothing.balance`.
    """

    def __init__(self, inner: nn.Module, divisor: torch.Tensor):
        super().__init__()
        self.inner = inner
        self.factor = nn.Buffer(divisor.reciprocal(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., K) to (..., N)."""
        result: torch.Tensor = self.inner(x * self.factor.to(x.dtype))
        return result


class Branched(nn.Module):
    """y = inner(x) + L (R x): the part of the weight that few bits cannot hold.

    Args:
        inner: takes (..., K), returns (..., N).
        left, right: (N, r) and (r, K).
    """

    def __init__(self, inner: nn.Module, left: torch.Tensor, right: torch.Tensor):
        super().__init__()
        self.inner = inner
        self.left, self.right = nn.Buffer(left, persistent=False), nn.Buffer(right, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., K) to (..., N)."""
        result: torch.Tensor = self.inner(x)
        return result + (x @ self.right.to(x.dtype).T) @ self.left.to(x.dtype).T
