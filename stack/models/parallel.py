"""Context parallelism of diffusers: which processes share a denoiser's tokens, and where its hooks split them.

Under `enable_parallelism(config=ContextParallelConfig(...))` the denoiser is given whole tensors and returns them, the
same ones on every process. Between a hook that splits (on the denoiser or on its first block, by its `_cp_plan`) and
one that gathers (on the last projection) each process has its own tokens.
"""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin
from diffusers.hooks.context_parallel import ContextParallelSplitHook
from torch import nn

from ..core.ranks import ALONE, Ranks


def ranks_of(denoiser: nn.Module) -> Ranks:
    """The processes that share this denoiser's tokens."""
    config = denoiser._parallel_config if isinstance(denoiser, ModelMixin) else None
    parts = None if config is None else config.context_parallel_config
    if parts is None:
        return ALONE
    mesh = parts._flattened_mesh
    return Ranks(mesh.get_group(), mesh.size())


def behind_split(block: nn.Module) -> tuple[Any, str]:
    """Where a block's own forward is kept: an object and its attribute.

    That is the block itself, or, where a hook in front splits what it is given, what that hook calls. Whoever stands
    in front of the hook sees all tokens go in and a part of them come out.
    """
    registry = vars(block).get("_diffusers_hook")
    hooks = [] if registry is None else [registry.hooks[name] for name in registry._hook_order]
    first = next((hook for hook in hooks if isinstance(hook, ContextParallelSplitHook)), None)
    return (block, "forward") if first is None else (first.fn_ref, "forward")
