"""A linear whose weight is stored in 8 or 4 bits and unpacked for each product: for memory, not for speed."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import StackError
from ..formats import Stored, load, store
from ..schemes import Scheme


class WeightOnlyLinear(nn.Module):
    """y = x . W' + b with W' the stored weight, computed in x's dtype.

    Takes (..., K) of any float dtype and layout, zero tokens included. Rows do not depend on each other.

    Args:
        stored: the weight where it is stored already; the linear's own is not read then.
    """

    def __init__(self, linear: nn.Linear, scheme: Scheme, stored: Stored | None = None):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.stored = stored or store(linear.weight, scheme)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., K) to (..., N).

        Raises:
            StackError: the last dimension is not K.
        """
        if x.shape[-1] != self.in_features:
            raise StackError(f"expected rows of {self.in_features} features, got a tensor of shape {tuple(x.shape)}")
        return nn.functional.linear(x, load(self.stored, x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, scheme={self.stored.scheme.name}"
