"""A recipe planned without weights, in words, for `ditstack explain`."""

from __future__ import annotations

from pathlib import Path

import torch

from ..caching.cache import Cache
from ..core.errors import StackError
from ..core.facts import Facts, assumed_machine, machine_of
from ..core.plan import explain
from ..recipe import Recipe
from ..runtime.call_arguments import sides_of
from .published import Published, published, published_models
from .saved_config import from_folder
from .unloaded import Unloaded, decides_itself, savings, unloaded

TIERS = {"around the whole denoiser": "whole", "at its blocks": "blocks", "in its attention": "attention"}


def asked(
    recipe: Recipe,
    model: str | None = None,
    config: Path | None = None,
    size: str | None = None,
    frames: int | None = None,
    assume: str | None = None,
    steps: int | None = None,
    device: str | None = None,
) -> Unloaded | None:
    """A recipe planned without weights; None where the model is to be loaded.

    Args:
        model: hub id; None takes the recipe's.
        config: folder of a saved pipeline instead.
        size: in pixels, see `sides_of`.
        frames: of a video.
        assume: a kind of machine; None takes this one.
        steps: denoiser steps; None takes the recipe's.
        device: where the model is to be loaded; None for nowhere, if its configuration is known.

    Raises:
        StackError: no configuration of this model is known, or the plan is refused.
    """
    name = model or recipe.model
    if (size, frames, assume, config) == (None, None, None, None):
        if device is not None or name not in published_models():
            return None
    elif device is not None:
        raise StackError("--device loads the model: expected no --size, --frames, --assume or --config beside it")
    if config is not None and model is not None:
        raise StackError("expected --model or --config, got both: a folder's configuration is a model's")
    known = from_folder(config) if config is not None else published(name)
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = assumed_machine(assume) if assume is not None else machine_of(here)
    return unloaded(recipe, known.at(None if size is None else sides_of(size), frames), machine, steps)


def told(found: Unloaded) -> str:
    """The plan and its figures in words."""
    model, facts = found.model, found.plan.facts
    machine = facts.machine.vector or facts.machine.device
    lines = [
        f"{model.repo} from its configuration alone: no weights were read, nothing was measured on it; for {machine}",
        _size(model, facts),
        explain(found.plan),
        *_tiers(facts),
        _weights(found),
        _state(found),
        *_work_words(found),
    ]
    return "\n".join(lines)


def _size(model: Published, facts: Facts) -> str:
    if not facts.grid:
        return "size unknown: what a token of this class stands for is not known"
    width, height = model.size
    video = f", {model.frames} frames" if model.frames else ""
    tokens = " x ".join(map(str, facts.grid))
    return f"{width}x{height}{video}: {tokens} tokens, {facts.text_tokens} text tokens"


def _tiers(facts: Facts) -> list[str]:
    got = [words for words, name in TIERS.items() if name not in facts.lacks]
    return [f"caches and kernels stand: {'; '.join(got) or 'nowhere'}"]


def _weights(found: Unloaded) -> str:
    of = f" in each of {found.model.denoisers} denoisers" if found.model.denoisers > 1 else ""
    text = f"weights: {found.parameters / 1e9:.2f} B parameters{of}, {gigabytes(found.bytes_before)}"
    if not found.weights:
        return f"{text}, not quantized"
    count = f"{len(found.weights.converted)} of {len(found.plan.facts.linears)} linears rounded"
    return f"{text} before quantization, {gigabytes(found.bytes_after)} after ({count})"


def _state(found: Unloaded) -> str:
    if not any(isinstance(p, Cache) for p in found.plan.passes()):
        return "cache state: none, no cache"
    if found.state is None:
        return "cache state: unknown, as its tokens or its blocks are"
    branch = f"{found.branches} guidance branches" if found.branches > 1 else "1 guidance branch"
    return f"cache state: {gigabytes(found.state_bytes)} per picture ({branch}, {found.state} each)"


def _work_words(found: Unloaded) -> list[str]:
    lines = [f"work of a call: unknown, {found.no_work}"]
    if found.work is not None:
        total = found.work.total
        whole = total.step()
        shares = (("linears of blocks", total.linears), ("attention", total.attention), ("the rest", total.rest))
        parts = ", ".join(f"{name} {macs / whole:.1%}" for name, macs in shares)
        lines = [f"work of a call: {whole / 1e12:.2f} T multiply-accumulates: {parts}"]
    most = savings(found)
    alone = "".join(f"{stage} {factor:.2f}x, " for stage, factor in most.alone.items())
    if decides_itself(found.plan):
        lines.append("the cache decides while it runs which steps it skips: what it saves is not known ahead")
    if most.alone:
        bound = "bound on arithmetic by the share of the work that is touched, not a measurement"
        lines.append(f"at most saved: {alone}all together {most.together:.2f}x ({bound})")
    return lines


def gigabytes(count: int) -> str:
    """Bytes for reading: "23.80 GB", "56.6 MB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
