"""The modules that take the place of the linears that were chosen."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .backends.base import Backend, storage_bytes
from .linears.int8 import Int8Linear
from .rounding.calibrated import FeedbackRounding
from .schemes import SCHEMES
from .selection import Choice, grouped


def new_modules(
    denoiser: nn.Module,
    choices: list[Choice],
    backends: dict[str, Backend],
    device: torch.device,
    rounded: FeedbackRounding | None,
) -> tuple[dict[str, nn.Module], int]:
    """New modules by path, and their bytes. Changes nothing."""
    known = rounded.linears if rounded else {}
    ready = {c.path: known[c.path] for c in choices if c.kept is None and c.path in known}
    for name in dict.fromkeys(c.scheme.name for c in choices if c.kept is None):
        backends[name].prepare(SCHEMES[name], device)
    converted: dict[str, nn.Module] = dict(ready)
    held = sum(storage_bytes(module.stored.tensors()) for module in ready.values())
    for group in grouped([c for c in choices if c.path not in ready]):
        backend = backends[group[0].scheme.name]
        modules = backend.convert([_linear(denoiser, c) for c in group], group[0].scheme)
        converted |= {c.path: module for c, module in zip(group, modules, strict=True)}
        held += sum(backend.held_bytes(module) for module in modules)
    return converted, held


def forget_inputs(modules: Iterable[nn.Module]) -> None:
    """Let int8 linears forget the rows that they round together."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, Int8Linear):
                part.shared.clear()


def _linear(denoiser: nn.Module, choice: Choice) -> nn.Linear:
    module = denoiser.get_submodule(choice.path)
    assert isinstance(module, nn.Linear)
    return module
