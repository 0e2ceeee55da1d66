"""Which arguments hold one entry per sample, and whether a batch can be cut along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..ports import rows_of
from .blocks import BlockList
from .streams import Blocks
from .trace import Trace, tensors

CLOSE = 1e-4  # relative to the largest number: kernels of another batch size round otherwise


def grows_with_batch(one: Any, two: Any) -> bool:
    """Whether every tensor of a value has as many entries as there are samples.

    Args:
        one, two: the value in a call of one sample, and in a call of two.
    """
    alone, together = tensors(one), tensors(two)
    if not alone or len(alone) != len(together):
        return False
    shapes = [(a.shape, b.shape) for a, b in zip(alone, together, strict=True)]
    return all(a and b and a[0] == 1 and b[0] == 2 and a[1:] == b[1:] for a, b in shapes)


def batched_inputs(one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[str, ...]:
    """Arguments of the denoiser with a leading batch dimension."""
    return tuple(name for name, value in one.items() if name in two and grows_with_batch(value, two[name]))


def batched_of_blocks(lists: Sequence[BlockList], blocks: Blocks, two: Trace) -> tuple[str, ...]:
    """Arguments of blocks with a leading batch dimension that are no streams."""
    found = dict[str, None]()
    for one in lists:
        streams = blocks.ports[one.path].takes.values()
        for call in one.calls:
            also = two.of(call.path)[0].given
            found |= {
                name: None
                for name, value in call.given.items()
                if name not in streams and name in also and grows_with_batch(value, also[name])
            }
    return tuple(found)


@torch.no_grad()
def rows_differ(blocks: Blocks, two: Trace, batched: Sequence[str]) -> str:
    """Why blocks cannot be run for some samples of a batch; "" where they can.

    Args:
        two: a call of two samples.
    """
    for path in blocks.paths:
        call, ports = two.of(path)[0], blocks.ports_at(path)
        cut = {*batched, *ports.takes.values()}
        given = {name: rows_of(value, [1]) if name in cut else value for name, value in call.given.items()}
        try:
            alone = ports.read(called_with(call.module, given))
        except Exception as error:  # whatever a block makes of arguments that do not fit together
            return f"a block does not run for one sample of a batch: {type(error).__name__}: {error}"
        for name, whole in ports.read(call.result).items():
            if not close(alone[name], whole[1:]):
                return "a block gives other tokens for one sample than in a batch"
    return ""


def called_with(module: nn.Module, given: Mapping[str, Any]) -> Any:
    """Call a module with arguments as they were traced."""
    loose = {"args", "kwargs"} & given.keys()
    named = {name: value for name, value in given.items() if name not in loose}
    return module(**named, **given.get("kwargs", {}))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return one.shape == other.shape and bool((one - other).abs().max() <= CLOSE * (1 + other.abs().max()))
