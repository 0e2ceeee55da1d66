"""A linear whose weight is stored in 8 or 4 bits and unpacked for each product: for memory, not for speed."""

from __future__ import annotations

import torch
from torch import nn

from ...core.errors import StackError
from ..formats import Stored, load, store, table_of
from ..schemes import Scheme
from .fixed import fixed_buffer


class WeightOnlyLinear(nn.Module):
    """y = x . W' + b with W' the stored weight, computed in x's dtype.

    Takes (..., K) of any float dtype and layout, zero tokens included. Rows do not depend on each other. It can be
    moved, and cast: the stored weight stays as it is, whatever the model is cast to.

    Args:
        stored: the weight where it is stored already; the linear's own is not read then.
    """

    def __init__(self, linear: nn.Linear, scheme: Scheme, stored: Stored | None = None):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        stored = stored or store(linear.weight, scheme)
        self.scheme = stored.scheme
        self._types = stored.values.dtype, stored.step.dtype
        self.values, self.step = fixed_buffer(stored.values), fixed_buffer(stored.step)
        self.low = None if stored.low is None else fixed_buffer(stored.low)
        table = table_of(stored.scheme, stored.step.dtype, stored.step.device)
        self.table = None if table is None else fixed_buffer(table)
        self.bias = linear.bias

    @property
    def stored(self) -> Stored:
        """The weight as it is kept."""
        values, step = self._types
        low = None if self.low is None else self.low.view(step)
        return Stored(self.scheme, self.values.view(values), self.step.view(step), low, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input (..., K) to (..., N).

        Raises:
            StackError: the last dimension is not K.
        """
        if input.shape[-1] != self.in_features:
            raise StackError(f"expected rows of {self.in_features} features, got shape {tuple(input.shape)}")
        table = None if self.table is None else self.table.view(self._types[1])
        return nn.functional.linear(input, load(self.stored, input.dtype, table), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, scheme={self.scheme.name}"
