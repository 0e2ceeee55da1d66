"""The streams of the main blocks by name, which of them is read behind them, and the proof that blocks can answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..ports import Ports, several, shape_only
from .blocks import BlockList, Flow, joined_streams, ports_of, returned_streams, same_streams
from .trace import Trace, answering, output_of, same, tensors

TEXT = "text"


class Unproven(Exception):
    """Something could not be derived, or does not hold on the small model; its text is the reason."""


@dataclass(frozen=True)
class Blocks:
    """The main blocks of a denoiser.

    Attributes:
        ports: where the streams are, by list.
        streams: stream to argument name, of the first list.
        output: the stream that is read behind the last block for the first output.
        read: all streams that are read there, this one first.
        one_stream: why the output stream is not the same from the first block to the last; "" where it is.
    """

    lists: tuple[BlockList, ...]
    ports: Mapping[str, Ports]
    output: str
    read: tuple[str, ...]
    one_stream: str

    @property
    def paths(self) -> list[str]:
        """Paths of all blocks in running order."""
        return [call.path for one in self.lists for call in one.calls]

    def ports_at(self, path: str) -> Ports:
        """Those of a block."""
        return self.ports[path.rpartition(".")[0]]


def named_blocks(denoiser: nn.Module, trace: Trace, lists: Sequence[BlockList], output: str) -> Blocks:
    """The blocks with names for their streams.

    Args:
        output: what to call the stream that is read behind the blocks for the first output.

    Raises:
        Unproven: none is read there for the first output.
    """
    last = lists[-1]
    moved = {flow: _moved(denoiser, trace, last, flow) for flow in returned_streams(last)}
    read = sorted((flow for flow in moved if moved[flow]), key=lambda flow: not moved[flow][0])
    if not read or not moved[read[0]][0]:
        raise Unproven("behind the last block none of its streams is read for the first output")
    names = [_named(last, read[0], output, also_read=read[1:])]
    links: Mapping[Flow, Flow]
    one_stream = ""
    joined: tuple[str, tuple[Flow, ...]] | None = None
    for earlier, later in zip(reversed(lists[:-1]), reversed(lists[1:]), strict=True):
        if links := same_streams(earlier, later):
            given = {links[flow]: names[0][flow] for flow in later.flows}
            names.insert(0, _named(earlier, None, output, given))
        else:
            order = joined_streams(earlier, later)
            read_part = _read_part(denoiser, trace, earlier, last, order) if later is last else None
            if read_part is None:
                one_stream = f"{later.path} take the streams of {earlier.path} in one"
            else:
                joined = (later.path, order)
            names.insert(0, _named(earlier, read_part, output))
    if any(not one.plain for one in lists):
        one_stream = one_stream or "streams are changed between blocks, or blocks return more than streams"
    ports = {one.path: ports_of(one, named) for one, named in zip(lists, names, strict=True)}
    if joined:
        ports[joined[0]] = _joined_ports(ports[joined[0]], lists[-2], names[-2], joined[1])
    return Blocks(tuple(lists), ports, output, tuple(names[-1][flow] for flow in read), one_stream)


def _named(
    one: BlockList,
    read: Flow | None,
    output: str,
    given: Mapping[Flow, str] | None = None,
    also_read: Sequence[Flow] = (),
) -> dict[Flow, str]:
    """Names of a list's streams: the one that is read, the text, and others by their argument."""
    names = dict(given or {})
    if read is None and output not in names.values():
        read = next((flow for flow in one.flows if flow[0] in ("hidden_states", "x")), one.flows[0])
    for flow in one.flows:
        if flow not in names:
            text = flow not in also_read and (len(one.flows) <= 2 or "encoder" in flow[0])
            other = TEXT if text else flow[0]
            names[flow] = output if flow == read else other
    return names


def _moved(denoiser: nn.Module, trace: Trace, last: BlockList, flow: Flow) -> list[bool]:
    """Which outputs depend on what the last block returns there; [] where none does."""
    result = last.calls[-1].result
    items = list(several(result))
    items[flow[1]] = shape_only(items[flow[1]])
    answer = type(result)(items) if isinstance(result, list | tuple) else items[0]
    without = tensors(_answered(denoiser, trace, {last.calls[-1].path: answer}))
    moved = [not torch.equal(*pair) for pair in zip(without, tensors(trace.output), strict=True)]
    return moved if any(moved) else []


def _read_part(
    denoiser: nn.Module, trace: Trace, earlier: BlockList, last: BlockList, parts: Sequence[Flow]
) -> Flow | None:
    """Which of the streams that lie in one behind the last block is read; None where it is not just one."""
    made, whole, read, start = returned_streams(earlier), last.calls[-1].result, [], 0
    for flow in parts:
        end = start + made[flow].shape[1]
        without = whole.clone()
        without[:, start:end] = torch.nan
        if not same(_answered(denoiser, trace, {last.calls[-1].path: without}), trace.output):
            read.append(flow)
        start = end
    return read[0] if len(read) == 1 else None


def _joined_ports(ports: Ports, earlier: BlockList, names: Mapping[Flow, str], order: Sequence[Flow]) -> Ports:
    """Ports of blocks that take the streams of the list before them in this order, in one."""
    (name,), made = ports.takes.values(), returned_streams(earlier)
    streams = tuple(names[flow] for flow in order)
    lengths = {names[flow]: made[flow].shape[1] for flow in order}
    return Ports(dict.fromkeys(streams, name), dict.fromkeys(streams, 0), 1, joined=streams, lengths=lengths)


def _answered(denoiser: nn.Module, trace: Trace, answers: Mapping[str, Any]) -> Any:
    """The output where these modules answer with these values."""
    with answering(denoiser, {path: partial(_constant, value) for path, value in answers.items()}):
        return output_of(denoiser, trace.given)


def _constant(value: Any, given: Mapping[str, Any]) -> Any:
    return value


def prove_answers(denoiser: nn.Module, trace: Trace, blocks: Blocks) -> None:
    """Blocks read and put together by their streams give the same output; so do blocks that answer in their place.

    Raises:
        Unproven: they do not, bit for bit.
    """
    recorded = {call.path: call.result for one in blocks.lists for call in one.calls}
    rebuilt = {p: blocks.ports_at(p).answer(_full(blocks, p, recorded), recorded[p]) for p in recorded}
    if not same(_answered(denoiser, trace, rebuilt), trace.output):
        raise Unproven("blocks that answer with what they returned in an earlier call give another output")
    *before, last = blocks.paths
    try:
        skipped = {path: shape_only(recorded[path]) for path in before} | {last: rebuilt[last]}
    except TypeError as error:
        raise Unproven(f"blocks return what cannot stand in for them: {error}") from error
    if not same(_answered(denoiser, trace, skipped), trace.output):
        raise Unproven("what blocks in front return is read behind the last block")


def _full(blocks: Blocks, path: str, recorded: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return blocks.ports_at(path).read(recorded[path])


def prove_range(denoiser: nn.Module, trace: Trace, blocks: Blocks) -> str:
    """Why blocks cannot hand on what they were given, as a skipped range of blocks does; "" where they can."""
    if blocks.one_stream:
        return blocks.one_stream
    first, *between, last = blocks.paths
    recorded = {call.path: call.result for one in blocks.lists for call in one.calls}
    handed: dict[str, Any] = {}

    def on(path: str, given: Mapping[str, Any]) -> Any:
        ports = blocks.ports_at(path)
        streams = handed[path] = ports.given(given)
        return ports.answer({**streams, **ports.read(recorded[path])} if path == last else streams)

    with answering(denoiser, {path: partial(on, path) for path in (*between, last)}):
        out = output_of(denoiser, trace.given)
    if not same(out, trace.output):
        return "blocks that hand on what they were given change what the last one is read for"
    entry = blocks.ports_at(first).read(recorded[first])
    if any(not same(handed[last].get(name), entry.get(name)) for name in blocks.read):
        return "the stream is changed between blocks"
    return ""
