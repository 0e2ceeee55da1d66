"""Which module lists are the blocks, in which order they run, and what flows from block to block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import nn

from ..ports import Ports, several
from .trace import ModuleCall, Trace

Flow = tuple[str, int]  # argument of a block, place in its return value


@dataclass(frozen=True)
class BlockList:
    """A module list that is called member by member.

    Attributes:
        calls: of its members, in order.
        flows: argument and place in the return value of every stream.
        plain: every stream is handed from block to block as it is, and blocks return nothing else.
        joined: streams of the list before it that lie one after the other in its only stream; () where they do not.
    """

    path: str
    calls: tuple[ModuleCall, ...]
    flows: tuple[Flow, ...]
    plain: bool


def candidates(denoiser: nn.Module, trace: Trace) -> list[BlockList]:
    """Module lists whose members each take and return a stream (B, N, D), in running order."""
    found: list[BlockList] = []
    for path, module in denoiser.named_modules():
        # Inside a member of another list it is not one list but one of many.
        if not isinstance(module, nn.ModuleList) or any(part.isdigit() for part in path.split(".")):
            continue
        calls = list(_in_turn(path, module, trace))
        if calls and len(calls) == len(module) and all(_is_block(call.module) for call in calls):
            flows, plain = _flows(calls)
            # Deep inside the denoiser only what is handed on as it is makes a list of blocks.
            if flows and (plain or "." not in path):
                found.append(BlockList(path, tuple(calls), flows, plain))
    apart = [one for one in found if not any(_between(one, other) for other in found)]
    return sorted(apart, key=lambda one: one.calls[0].first)


def _between(one: BlockList, other: BlockList) -> bool:
    """Whether a list runs between the blocks of a larger one, as adapters do."""
    meets = one.calls[0].first < other.calls[-1].last and other.calls[0].first < one.calls[-1].last
    return one is not other and meets and _weights(one) < _weights(other)


def _weights(one: BlockList) -> int:
    return sum(weight.numel() for call in one.calls for weight in call.module.parameters())


def _in_turn(path: str, module: nn.ModuleList, trace: Trace) -> Iterator[ModuleCall]:
    """The calls of its members, as long as each ran once and after the one before it."""
    end = -1
    for index in range(len(module)):
        calls = trace.of(f"{path}.{index}")
        if len(calls) != 1 or calls[0].first < end:
            return
        end = calls[0].last
        yield calls[0]


def _is_block(module: nn.Module) -> bool:
    """Several linears make a block; one makes a projection."""
    return sum(isinstance(part, nn.Linear) for part in module.modules()) > 1


def is_stream(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value of a call of one sample can be tokens (B, N, D)."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3 and len(value) == 1


def _flows(calls: Sequence[ModuleCall]) -> tuple[tuple[Flow, ...], bool]:
    """What goes from each block to the next, and whether nothing is done to it on the way."""
    first = several(calls[0].result)
    # A stream keeps its shape. Two of one shape are told apart by what the next block is given.
    pairs = [
        (name, place)
        for place, item in enumerate(first)
        for name, value in calls[0].given.items()
        if is_stream(item) and is_stream(value) and value.shape == item.shape
    ]
    exact = [pair for pair in pairs if len(calls) > 1 and all(_handed(a, b, pair) for a, b in pairwise(calls))]
    # Something is added on the way, or there is but one block: the stream of a usual name counts.
    taken, places = {name for name, _ in exact}, {place for _, place in exact}
    likely = [pair for pair in pairs if pair[0] not in taken and pair[1] not in places]
    likely = [pair for pair in likely if pair[0] in ("hidden_states", "x")] or ([] if exact else likely)
    found = tuple(sorted((*exact, *likely[:1]), key=lambda pair: pair[1]))
    return found, len(first) == len(found) and (not likely or len(calls) == 1)


def _handed(block: ModuleCall, following: ModuleCall, pair: Flow) -> bool:
    """Whether the next block is given what this one returned there."""
    name, place = pair
    items, taken = several(block.result), following.given.get(name)
    if place >= len(items) or not is_stream(items[place]) or not is_stream(taken):
        return False
    made = items[place]
    return made is taken or (made.shape == taken.shape and torch.equal(made, taken))


def main_lists(found: Sequence[BlockList]) -> list[BlockList]:
    """The lists of the main stream: the last one, and those before it that make all that the next one is given.

    What ran before them on other streams, such as refiners of the text, is none of them.
    """
    lists = list(found[-1:])
    for earlier in reversed(found[:-1]):
        if not (same_streams(earlier, lists[0]) or joined_streams(earlier, lists[0])):
            break
        lists.insert(0, earlier)
    return lists


def returned_streams(one: BlockList) -> dict[Flow, torch.Tensor]:
    """What its last block returns; a stream that it does not return is left out."""
    items = several(one.calls[-1].result)
    return {flow: items[flow[1]] for flow in one.flows if flow[1] < len(items) and is_stream(items[flow[1]])}


def same_streams(earlier: BlockList, later: BlockList) -> dict[Flow, Flow]:
    """Streams of the later list to those of the earlier one that they are; {} where one of them is another's."""
    made, taken = returned_streams(earlier), later.calls[0].given
    links: dict[Flow, Flow] = {}
    for flow in later.flows:
        here = [old for old, tensor in made.items() if tensor.shape == taken[flow[0]].shape]
        here = [old for old in here if made[old] is taken[flow[0]] or torch.equal(made[old], taken[flow[0]])]
        if not here:
            return {}
        links[flow] = here[0]
    return links


def joined_streams(earlier: BlockList, later: BlockList) -> tuple[Flow, ...]:
    """Streams of the earlier list that lie one after the other in the later one's only stream; () where they do not."""
    made = returned_streams(earlier)
    if len(later.flows) != 1 or len(made) < 2:
        return ()
    whole: torch.Tensor = later.calls[0].given[later.flows[0][0]]
    for order in (tuple(made), tuple(reversed(made))):
        parts = [made[flow] for flow in order]
        fits = sum(part.shape[1] for part in parts) == whole.shape[1] and parts[0].shape[2] == whole.shape[2]
        if fits and torch.equal(torch.cat(parts, 1), whole):
            return order
    return ()


def ports_of(one: BlockList, names: Mapping[Flow, str]) -> Ports:
    """Where the streams of a list's blocks are."""
    order = sorted(one.flows, key=lambda flow: flow[1])
    result = one.calls[0].result
    return Ports(
        {names[flow]: flow[0] for flow in order},
        {names[flow]: flow[1] for flow in order},
        len(several(result)),
        type(result) if isinstance(result, list | tuple) else tuple,
    )
