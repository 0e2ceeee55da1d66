"""A small model is built and called as in a fresh process, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

DENSE = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


@contextmanager
def plainly() -> Iterator[None]:
    """In float32, on the CPU, without autocast, with torch's own attention."""
    with ExitStack() as stack:
        before = torch.get_default_dtype()
        if before != torch.float32:  # the only one of these that other threads see
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, before)
        if torch.get_default_device().type != "cpu":  # every call would pass through it
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(sdpa_kernel(DENSE))
        yield


def with_own_attention(denoiser: nn.Module) -> nn.Module:
    """The denoiser, whose attention no longer follows the back end that is set for the process; some need their own."""
    for module in denoiser.modules():
        processor: Any = vars(module).get("processor")
        if "_attention_backend" in dir(processor) and processor._attention_backend is None:
            vars(processor)["_attention_backend"] = AttentionBackendName.NATIVE
    return denoiser
