"""Which kernel computes a model's dense attention, chosen on its instances alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn


def attention_layers(denoiser: nn.Module) -> list[Any]:
    """The layers of a model that hold a processor."""
    return [module for module in denoiser.modules() if isinstance(module, AttentionModuleMixin)]


def put_cudnn(denoiser: nn.Module) -> Callable[[], None]:
    """Let diffusers' own processors call cuDNN; on a CPU, which has none, torch's choice. Returns what takes it back.

    `set_attention_backend` would do the same to every model of the process.
    """
    on_gpu = next(denoiser.parameters()).device.type == "cuda"
    backend = AttentionBackendName._NATIVE_CUDNN if on_gpu else AttentionBackendName.NATIVE
    processors = [layer.processor for layer in attention_layers(denoiser)]
    before = [processor._attention_backend for processor in processors]
    for processor in processors:
        processor._attention_backend = backend

    def take_back() -> None:
        for processor, was in zip(processors, before, strict=True):
            processor._attention_backend = was

    return take_back


KERNELS: dict[str, Callable[[nn.Module], Callable[[], None]]] = {
    "": lambda denoiser: lambda: None,
    "cuDNN": put_cudnn,
}
