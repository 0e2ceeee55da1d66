"""What a backend is: who computes a scheme, on which machines, in how many bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import nn

from ...core.errors import StackError
from ...core.facts import Machine
from ...runtime.fingerprint import leaves
from ..schemes import Scheme


class Backend(Protocol):
    """One way to compute quantized linears. Implementations are stateless; one file each.

    Attributes:
        rounds_in_steps: whether it rounds activations by operations of their own, which only a compiler fuses.
    """

    name: str
    rounds_in_steps: bool

    def refuses(self, scheme: Scheme, machine: Machine) -> str:
        """Why it cannot compute a scheme on a machine, with the alternative or what to install; '' where it can.

        Touches no tensor, and loads no library.
        """
        ...

    def kernel(self, scheme: Scheme, machine: Machine) -> str:
        """Which product it uses there, for `explain()`. Pure."""
        ...

    def multiple(self, scheme: Scheme, machine: Machine) -> int:
        """What in and out features have to be a multiple of. Pure."""
        ...

    def prepare(self, scheme: Scheme, device: torch.device) -> None:
        """Make sure that `convert` will work, before the first weight is touched.

        Raises:
            StackError: its library does not load, or its product is wrong on this machine.
        """
        ...

    def convert(self, linears: Sequence[nn.Linear], scheme: Scheme) -> list[nn.Module]:
        """New modules for linears that all read the same input. The linears themselves are not touched.

        Raises:
            StackError: a weight holds NaN or infinity, or the library left a linear as it was.
        """
        ...

    def held_bytes(self, module: nn.Module) -> int:
        """Bytes of the storages behind a converted weight and its scales; the bias is not counted."""
        ...


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind some tensors, each once; looks into tensor subclasses and oneDNN's layout."""
    sizes: dict[int, int] = {}
    for leaf in (leaf for tensor in tensors for leaf in leaves(tensor)):
        if leaf.layout == torch._mkldnn:  # type: ignore[attr-defined]  # torch does not declare it
            sizes[id(leaf)] = torch.ops.mkldnn._nbytes(leaf)
        else:
            storage = leaf.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


class LibraryLinear(nn.Module):
    """A library's linear with this package's guarantees: any layout, zero tokens, few rows.

    Args:
        linear: the library's module.
        features: (in, out).
        fewest_rows: with fewer, rows of zeros are added for its product and cut off again; on a CPU any number will do.
    """

    def __init__(self, linear: nn.Module, features: tuple[int, int], fewest_rows: int = 1):
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = features
        self.fewest_rows = fewest_rows

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input (..., K) to (..., N).

        Raises:
            StackError: the last dimension is not K.
        """
        if input.shape[-1] != self.in_features:
            raise StackError(f"expected rows of {self.in_features} features, got shape {tuple(input.shape)}")
        shape = (*input.shape[:-1], self.out_features)
        if input.numel() == 0:
            return input.new_empty(shape)
        rows = input.reshape(-1, self.in_features).contiguous()
        count = len(rows)
        if count < self.fewest_rows and rows.device.type != "cpu":
            rows = nn.functional.pad(rows, (0, 0, 0, self.fewest_rows - count))
        return self.linear(rows)[:count].view(shape)
