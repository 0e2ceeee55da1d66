"""What other libraries have put on a model before it came here. Reads instances only; changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from .parallel import ranks_of

CAST = "weights cast to fp8"
LORA = "an unmerged LoRA of peft"
FUSED = "fused projections"
OFFLOADED = "offloading hooks"
CACHE = "a cache of diffusers"
COMPILED = "blocks compiled in place"
PARALLEL = "tokens split over processes"
EXCHANGING = frozenset({"group_offloading", "layerwise_casting"})  # hooks of diffusers


def preexisting_on(denoiser: Any) -> tuple[str, ...]:
    """Which of the above are on a model."""
    modules = list(denoiser.modules())
    hooks = {name for module in modules for name in _hooks(module)}
    found = {
        CAST: any(p.dtype.is_floating_point and torch.finfo(p.dtype).bits < 16 for p in denoiser.parameters()),
        LORA: any(type(module).__module__.startswith("peft.") for module in modules),
        FUSED: any(vars(module).get("fused_projections") for module in modules),
        # A hook on the whole model moves whatever is in it.
        OFFLOADED: "group_offloading" in hooks or any("_hf_hook" in vars(module) for module in modules[1:]),
        CACHE: isinstance(denoiser, CacheMixin) and denoiser.is_cache_enabled,
        PARALLEL: not ranks_of(denoiser).alone,
        COMPILED: any(module._compiled_call_impl is not None for module in modules),
    }
    return tuple(name for name, there in found.items() if there)


def moved_by_hooks(denoiser: nn.Module) -> list[nn.Module]:
    """Modules below the denoiser whose tensors a hook exchanges while the denoiser runs: to move them, or to cast them.

    A hook of accelerate on the denoiser itself moves it as a whole, before it runs: it is not counted.
    """
    hooked = [
        m
        for m in denoiser.modules()
        if EXCHANGING.intersection(_hooks(m)) or ("_hf_hook" in vars(m) and m is not denoiser)
    ]
    return list(dict.fromkeys(inner for module in hooked for inner in module.modules()))


def execution_device(denoiser: nn.Module) -> torch.device:
    """Where the denoiser computes: an offloading hook's device, else that of its first parameter."""
    for module in denoiser.modules():
        if "group_offloading" in _hooks(module):
            return vars(module)["_diffusers_hook"].get_hook("group_offloading").group.onload_device
        for hook in _accelerate_hooks(module):
            if (device := vars(hook).get("execution_device")) is not None:
                return torch.device(device)
    return next(denoiser.parameters()).device


def _accelerate_hooks(module: nn.Module) -> list[Any]:
    """Hooks of accelerate on a module; several stand in a sequence."""
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else list(vars(hook).get("hooks", (hook,)))


def _hooks(module: Any) -> list[str]:
    """Names of diffusers' hooks on a module."""
    registry = vars(module).get("_diffusers_hook")
    return [] if registry is None else list(registry.hooks)
