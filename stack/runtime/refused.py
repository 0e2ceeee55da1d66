"""What a user may not do to a model while passes stand in for its weights, or at all under a stack.

Where it is allowed, what a cache has kept is no longer used: these methods may write to weights in ways that torch does
not count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.errors import StackError
from ..core.installer import Installer
from .layers import Layers
from .target import Target

PLAIN_LINEARS = "adapters go on plain linears; distill(file, switchable=True) takes a LoRA"
# Methods of diffusers' models that read, wrap or hook the linears, by what they would find there.
LATER = {
    "fuse_qkv_projections": "it would join weights that are not the model's own",
    "enable_layerwise_casting": "it would cast some of its weights only",
    "load_state_dict": "it would load some of its weights only",
    "enable_group_offload": "it would move some of its weights only",
    "add_adapter": PLAIN_LINEARS,
    "load_lora_adapter": PLAIN_LINEARS,
}
OF_PIPELINES = {"load_lora_weights": PLAIN_LINEARS}  # some pipelines look at the weights before they ask the denoiser

# Of models, whatever the passes: these hooks would stand in front of the stack.
UNDER_NO_STACK = {"enable_parallelism": "the stack would see the tokens of one process only"}
ALL = LATER | OF_PIPELINES | UNDER_NO_STACK


def refuse_later(target: Target, layers: Layers, install: Installer) -> None:
    """Let these methods of denoiser and pipeline refuse while a pass has other weights on it, or while any is on it."""
    for owner, names in ((target.denoiser, LATER | UNDER_NO_STACK), (target.pipe, OF_PIPELINES)):
        for name in names.keys() & set(dir(type(owner))):
            install.wrap_call(owner, name, partial(_refusing, target, layers, name))


def _refusing(target: Target, layers: Layers, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        stages = [layer.wanted.stage for layer in layers if layer.install.weights or name in UNDER_NO_STACK]
        if stages:
            what, why = f"{name}() on a model that carries {' and '.join(stages)}", ALL[name]
            raise StackError(f"{what}: {why}; undo() the stack first")
        try:
            return inner(*args, **kwargs)
        finally:
            target.conditions.weights_written()

    return called
