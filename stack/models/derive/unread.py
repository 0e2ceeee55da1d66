"""Modules that only blocks read: on a step on which no block runs they need not run either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..ports import shape_only
from .streams import Blocks
from .trace import Answer, ModuleCall, Trace, answering, output_of, same, tensors


def unread_modules(denoiser: nn.Module, trace: Trace, blocks: Blocks) -> tuple[list[str], list[str]]:
    """Modules in front of the blocks whose output nobody reads where the last block answers.

    Returns:
        Those that make the streams that are read behind the blocks where these begin, and the others.
    """
    last = {call.path: call.result for call in blocks.lists[-1].calls[-1:]}
    takes, first = blocks.ports_at(blocks.paths[0]).takes, blocks.lists[0].calls[0]
    entries = [takes[name] for name in blocks.read if name in takes]
    makers: list[str] = []
    others: list[str] = []
    for path in _before(denoiser, trace, first):
        seen: dict[str, torch.Tensor] = {}
        answers = _nothing(denoiser, trace, path)
        if answers is None:
            continue
        try:
            with answering(denoiser, answers | _noting(blocks, last, seen, entries)):
                unread = same(output_of(denoiser, trace.given), trace.output)
        except Exception:  # whatever a model does with an answer of NaN: it reads it
            continue
        if unread:
            (makers if any(tensor.isnan().any() for tensor in seen.values()) else others).append(path)
    return makers, others


def _before(denoiser: nn.Module, trace: Trace, first: ModuleCall) -> Iterator[str]:
    """Children of the denoiser that ran before the first block."""
    for name, module in denoiser.named_children():
        calls = [call for path in _called(name, module) for call in trace.of(path)]
        if calls and all(call.last < first.first for call in calls):
            yield name


def _called(path: str, module: nn.Module) -> list[str]:
    """The path of a module, or of those in it where it is a list or a dictionary of them."""
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [path]
    return [inner for name, part in module.named_children() for inner in _called(f"{path}.{name}", part)]


def _nothing(denoiser: nn.Module, trace: Trace, path: str) -> dict[str, Answer] | None:
    """Answers of NaN of a module, or of all in a list; None where it returns something else than tensors."""
    calls = [trace.of(inner) for inner in _called(path, denoiser.get_submodule(path))]
    if any(len(made) > 1 for made in calls):
        return None
    try:
        return {made[0].path: partial(_value, shape_only(made[0].result)) for made in calls if made}
    except TypeError:
        return None


def _noting(
    blocks: Blocks, last: Mapping[str, Any], seen: dict[str, torch.Tensor], entries: Sequence[str]
) -> dict[str, Answer]:
    """All blocks answer with nothing, the last with what it returned; the first notes what it is given."""
    results = {call.path: call.result for one in blocks.lists for call in one.calls}

    def answer(path: str, given: Mapping[str, Any]) -> Any:
        for name in entries if not seen else ():
            seen[name] = given[name]
        return last[path] if path in last else shape_only(results[path])

    return {path: partial(answer, path) for path in blocks.paths}


def _value(value: Any, given: Mapping[str, Any]) -> Any:
    return value


def constant_modules(denoiser: nn.Module, trace: Trace, later: Trace) -> list[str]:
    """Modules without weights, such as position tables, that return the same on another step of the request.

    Args:
        later: a call with another latent and another timestep, all else the same.
    """
    found = []
    for name, module in denoiser.named_children():
        one, other = trace.of(name), later.of(name)
        table = len(one) == len(other) == 1 and not list(module.parameters()) and tensors(one[0].result)
        if table and same(one[0].result, other[0].result):
            found.append(name)
    return found
