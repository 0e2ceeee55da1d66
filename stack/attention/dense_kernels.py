"""Exact attention by other kernels than the one torch chooses: what each can take, and how fast it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..compat.rules.sparse import MARGIN
from ..core.facts import Facts, Machine
from .products import pays, products

AUTO, TORCH = "auto", "torch"
Speedups = dict[int, dict[int, float]]


@dataclass(frozen=True)
class DenseKernel:
    """One of them.

    Attributes:
        does: what it is, in words.
        speedups: how many times as fast as torch's choice it is, by head size and tokens from which on.
        source: where these are from.
        heads: the sizes of heads that it takes.
        lacks: why it cannot compute on a machine in a dtype, or "".
        run: attention of (B, S, H, D) tensors, without a mask; the same shape and dtype out.
    """

    name: str
    does: str
    speedups: Speedups
    source: str
    heads: range
    lacks: Callable[[Machine, torch.dtype], str]
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

    def speedup(self, tokens: int, head_dim: int) -> float:
        """Over torch's choice, as measured with the nearest smaller head and length; 0 below all of them, and for heads
        that it does not take."""
        sizes = [size for size in self.speedups if size <= head_dim and head_dim in self.heads]
        lengths = self.speedups[max(sizes)] if sizes else {}
        known = [length for length in lengths if length <= tokens]
        return lengths[max(known)] if known else 0.0


def _no_products(machine: Machine, dtype: torch.dtype) -> str:
    if pays(machine, dtype):
        return ""
    if machine.device != "cpu":
        return f"it is for CPUs, the model is on {machine.device}"
    if dtype != torch.bfloat16:
        return f"it gains in bfloat16 alone, the model is in {str(dtype).removeprefix('torch.')}"
    return "torch's own attention uses AMX here" if machine.amx else "this CPU has no AVX-512 BF16"


def _no_cudnn(machine: Machine, dtype: torch.dtype) -> str:
    if machine.device != "cuda":
        return f"it is for CUDA, the model is on {machine.device}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"expected fp16 or bf16, got {str(dtype).removeprefix('torch.')}"
    return "" if machine.capability >= (8, 0) else "expected a GPU of compute capability 8.0 or later"


def cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention by cuDNN. (B, S, H, D) in and out."""
    heads = (x.transpose(1, 2) for x in (q, k, v))
    # By its own name: the public way to ask for it is a setting of the whole process.
    out, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(*heads, None, False)
    return out.transpose(1, 2)


KERNELS: dict[str, DenseKernel] = {
    kernel.name: kernel
    for kernel in (
        DenseKernel(
            "products",
            "two matrix products with the exponentials between them",
            {64: {512: 1.3, 1024: 2.0, 4096: 2.6}, 128: {256: 1.7, 1024: 2.6, 4096: 3.2}},
            "measured on a Zen 4 core, torch 2.13",
            range(1, 4097),
            _no_products,
            products,
        ),
        DenseKernel(
            "cudnn",
            "cuDNN's attention",
            {64: {2048: 1.2}, 128: {2048: 1.4}},
            "published for H100 (arXiv 2407.08608, figure 5: over FlashAttention 2), not measured here",
            range(8, 129, 8),  # torch itself asks cuDNN for no others
            _no_cudnn,
            cudnn,
        ),
    )
}


def possible(machine: Machine, dtype: torch.dtype) -> bool:
    """Whether any of them computes on this machine."""
    return not all(kernel.lacks(machine, dtype) for kernel in KERNELS.values())


def chosen(backend: str, machine: Machine, dtype: torch.dtype, tokens: int, head_dim: int) -> DenseKernel | None:
    """The kernel for such a call; None where torch's choice is to compute it.

    Args:
        backend: the name of one, or "auto" for the fastest that gains enough to be worth a different rounding.
    """
    fit = [kernel for kernel in KERNELS.values() if not kernel.lacks(machine, dtype) and head_dim in kernel.heads]
    if backend != AUTO:
        return next((kernel for kernel in fit if kernel.name == backend), None)
    best = max(fit, key=lambda kernel: kernel.speedup(tokens, head_dim), default=None)
    return best if best is not None and best.speedup(tokens, head_dim) >= MARGIN else None


def dtype_of(facts: Facts) -> torch.dtype:
    """The dtype that a model computes in."""
    found: torch.dtype = getattr(torch, facts.dtype)
    return found
