"""What a user may not do to a model while passes stand in for its weights, or at all under a stack."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.errors import StackError
from ..core.installer import Installer
from .layers import Layers
from .target import Target

# Methods of diffusers' models that read, wrap or hook the linears, by what they would find there.
LATER = {
    "fuse_qkv_projections": "it would join weights that are not the model's own",
    "enable_layerwise_casting": "it would cast some of its weights only",
    "load_state_dict": "it would load some of its weights only",
    "enable_group_offload": "it would move some of its weights only",
    "add_adapter": "adapters go on plain linears; distill(file, switchable=True) takes a LoRA",
    "load_lora_adapter": "adapters go on plain linears; distill(file, switchable=True) takes a LoRA",
}

# Likewise, whatever the passes: these hooks would stand in front of the stack.
UNDER_NO_STACK = {"enable_parallelism": "the stack would see the tokens of one process only"}


def refuse_later(target: Target, layers: Layers, install: Installer) -> None:
    """Let these methods of the denoiser refuse while a pass has other weights on it, or while any is on it."""
    for name in (LATER | UNDER_NO_STACK).keys() & set(dir(type(target.denoiser))):
        install.wrap_call(target.denoiser, name, partial(_refusing, layers, name))


def _refusing(layers: Layers, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        stages = [layer.wanted.stage for layer in layers if layer.install.weights or name in UNDER_NO_STACK]
        if stages:
            what, why = f"{name}() on a model that carries {' and '.join(stages)}", (LATER | UNDER_NO_STACK)[name]
            raise StackError(f"{what}: {why}; undo() the stack first")
        return inner(*args, **kwargs)

    return called
