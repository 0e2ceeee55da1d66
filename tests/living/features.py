"""What people do to a pipeline beside a stack: how each is put on, and stacks to put them beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model

from stack import Stack

CPU = torch.device("cpu")
STEPS = 14
Build = Callable[[Any], Stack]
Feature = Callable[[Any], Any]  # of a pipeline

STACKS: dict[str, Build] = {
    "svd": lambda pipe: Stack(pipe, steps=STEPS).cache("svd"),
    "first-block": lambda pipe: Stack(pipe, steps=STEPS).cache("first-block", threshold=0.5),
    "quantize": lambda pipe: Stack(pipe, steps=STEPS).quantize("int8", min_features=16),
}


def whole_offloaded(pipe: Any) -> None:
    """What `enable_model_cpu_offload` does to each component."""
    cpu_offload_with_hook(pipe.transformer, CPU)


def parts_offloaded(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does to each component."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, CPU, offload_buffers=bool(part._parameters))


def mapped(pipe: Any) -> None:
    """What loading with `device_map` does to a model."""
    model = pipe.transformer
    dispatch_model(model, {name: "cpu" for name, _ in model.named_children()}, main_device="cpu", force_hooks=True)


# These change where weights are or who calls them, and no number.
NEUTRAL: dict[str, Feature] = {
    "model offload": whole_offloaded,
    "sequential offload": parts_offloaded,
    "group offload, leaves": lambda pipe: pipe.transformer.enable_group_offload(CPU, CPU, "leaf_level"),
    "group offload, blocks": lambda pipe: pipe.transformer.enable_group_offload(
        CPU, CPU, "block_level", num_blocks_per_group=1
    ),
    "group offload of the pipeline": lambda pipe: pipe.enable_group_offload(CPU, CPU, "leaf_level"),
    "device_map": mapped,
    "compiled": lambda pipe: pipe.transformer.compile(backend="eager"),
    "blocks compiled": lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
}
# These change numbers: the same ones whether they are put on before or after the stack.
CHANGING: dict[str, Feature] = {
    "attention backend": lambda pipe: pipe.transformer.set_attention_backend("_native_math"),
    "layerwise casting": lambda pipe: pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
}
FEATURES = NEUTRAL | CHANGING
