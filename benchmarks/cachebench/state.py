"""How many bytes a request leaves behind: the state of whatever cache ran, ours or anybody's."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Leftover(TorchDispatchMode):
    """Notes every storage that an operation inside this context makes, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        # Views, of weights for instance, were made by nobody here.
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors(args)}
        for tensor in _tensors((made,)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                self._made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return made

    def bytes(self, apart_from: torch.Tensor) -> int:
        """Bytes of the storages still alive, the one of this tensor aside."""
        gc.collect()
        mine = apart_from.untyped_storage().data_ptr()
        return sum(size for place, (made, size) in self._made.items() if place != mine and not made.expired())


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
