"""Where element-wise work on a large tensor is done some rows at a time: on a CPU, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

# What lies between input and output stays in the cache then: a whole temporary costs more in page faults than the
# arithmetic. Elements of float32, 512 KiB.
_ELEMENTS = 131_072


def by_rows(
    compute: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """compute(*inputs), on a CPU for as many rows at a time as its cache holds, elsewhere in one go.

    An accelerator would pay for each piece with a launch per operation, and a compiler fuses the operations itself.

    Args:
        compute: takes rows of every input, and returns as many rows of the result; no row depends on another.
        inputs: tensors of M rows each.
        columns: of the result (M, columns).
        dtype: of the result.
        device: that computes.
    """
    length = max(1, _ELEMENTS // max(1, columns))
    if device.type != "cpu" or len(inputs[0]) <= length or torch.compiler.is_compiling():
        return compute(*inputs).to(dtype)
    result = torch.empty((len(inputs[0]), columns), dtype=dtype, device=inputs[0].device)
    for target, *parts in zip(result.split(length), *(x.split(length) for x in inputs), strict=True):
        target.copy_(compute(*parts))
    return result
