"""Arguments of blocks with an entry per token, and the proof that a block can be given some tokens only.

Proven on the small model: a block that is given its tokens in another order, and these arguments in the same order,
returns what it returned, in that order; so nothing else in it depends on where a token lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..layout import Along
from ..ports import Ports, returned, several
from .arguments import called_with, close
from .streams import Blocks, Unproven
from .trace import ModuleCall, Trace


def along_tokens(trace: Trace, other: Trace, blocks: Blocks) -> dict[str, Along]:
    """Argument to how it runs along the tokens.

    Args:
        trace, other: calls of different sizes.

    Raises:
        Unproven: one runs along them in a way that cannot be told, or a block does something else with their places.
    """
    found: dict[str, Along] = {}
    counts: tuple[dict[str, int], dict[str, int]] = {}, {}
    for path in blocks.paths:
        calls, ports = (trace.of(path)[0], other.of(path)[0]), blocks.ports_at(path)
        if not ports.joined:  # else they are those of the blocks before
            for call, count in zip(calls, counts, strict=True):
                count |= {name: tensor.shape[1] for name, tensor in ports.given(call.given).items()}
        taken = {*ports.takes.values()}
        named = [name for name in calls[0].given if name not in taken and name in calls[1].given]
        choices = {name: _choices([call.given[name] for call in calls], counts, blocks.output) for name in named}
        found |= _proven(calls[0], ports, blocks.output, {name: some for name, some in choices.items() if some}, found)
    return found


def _choices(values: Sequence[Any], counts: Sequence[Mapping[str, int]], output: str) -> list[Along]:
    """Streams whose tokens, the output stream's among them, are as many as the entries along an axis, in both calls.

    Of a tuple in all tensors, or else in those where they are.

    Raises:
        Unproven: that is so along several axes, as of a mask with a row and a column for each token.
    """
    pairs = list(zip(*map(_tensors, values), strict=False))
    found: list[Along] = []
    for axis in range(pairs[0][0].ndim if pairs else 0):
        for order in (order for size in (1, 2) for order in itertools.permutations(counts[0], size)):
            wanted = [sum(count.get(stream, 0) for stream in order) for count in counts]
            fitting = tuple(number for number, pair in enumerate(pairs) if _entries(pair, axis) == wanted)
            if output in order and fitting:
                found.append(Along(order, axis, fitting if len(fitting) < len(pairs) else ()))
    found = [along for along in found if not along.only] or found
    if len({along.axis for along in found}) > 1:
        raise Unproven("an argument of the blocks runs along the tokens twice")
    return found


def _entries(pair: Sequence[torch.Tensor], axis: int) -> list[int]:
    return [tensor.shape[axis] for tensor in pair if tensor.ndim > axis]


@torch.no_grad()
def _proven(
    call: ModuleCall, ports: Ports, output: str, choices: Mapping[str, list[Along]], known: Mapping[str, Along]
) -> dict[str, Along]:
    """The first combination under which the block returns the same tokens in another order."""
    # A mask that hides nothing would fit in any order.
    given = {**call.given, **{name: _uneven(call.given[name], some[0]) for name, some in choices.items()}}
    streams, made = ports.given(given), ports.read(called_with(call.module, given))
    if output not in streams:
        return {}
    counts = {name: tensor.shape[1] for name, tensor in streams.items()}
    order = torch.arange(counts[output]).flip(0).roll(1)
    wanted = {name: whole[:, order] if name == output else whole for name, whole in made.items()}
    moved = ports.arguments({**streams, output: streams[output][:, order]})
    for combination in itertools.product(*([known[n]] if n in known else some for n, some in choices.items())):
        found = dict(zip(choices, combination, strict=True))
        cut = {name: along.cut(given[name], counts, output, order) for name, along in found.items()}
        again = ports.read(called_with(call.module, {**given, **moved, **cut}))
        if all(close(again[name], whole) for name, whole in wanted.items()):
            return found
    raise Unproven(f"{call.path} depends on the order of its tokens")


def _uneven(value: Any, along: Along) -> Any:
    """Every third entry of what is the same for all tokens turned off."""
    return returned(
        tensor.index_fill(along.axis, torch.arange(1, tensor.shape[along.axis], 3), 0)
        if number in (along.only or (number,)) and (tensor == tensor.flatten()[0]).all()
        else tensor
        for number, tensor in enumerate(several(value))
    )


def _tensors(value: Any) -> list[torch.Tensor]:
    """An argument's tensors, where it is nothing else."""
    items = several(value)
    return list(items) if all(isinstance(item, torch.Tensor) for item in items) else []
