"""The micro part: the bare products and attention kernels that everything else is made of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from stack.attention.flex import Flex
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import block_map, cut
from stack.attention.producers import sampled
from stack.attention.sage import sage_attention

from .journal import Line
from .runner import Row
from .setting import Setting
from .timing import Work, call_ms

WIDTH, TEXT, HEADS, HEAD_DIM = 3072, 512, 24, 128
CALLS = 7  # of an attention kernel: the longest takes 20 ms
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
KEEPS = (0.5, 0.25)


def micro_rows(setting: Setting) -> Iterator[Row]:
    """Attention at 1,024 x 1,024 and at 2,048 x 2,048 pixels, then the linears of a block in three precisions."""
    for image in setting.either((4096, 16384), (256,)):
        attention = Attention(setting, image)
        tokens = attention.tokens
        yield Row("micro", f"SDPA, {tokens} tokens", 5, attention.sdpa)
        for name, backend in KERNELS.items():
            yield Row("micro", f"{name}, {tokens} tokens", 5, partial(attention.by, backend), needs_gpu=True)
        yield Row("micro", f"Sage, {tokens} tokens", 15, attention.sage)
        for keep in KEEPS:
            yield Row("micro", f"sparse {keep:g}, {tokens} tokens", 25, partial(attention.sparse, keep))
    rows, width = setting.either((TEXT + 4096, WIDTH), (256, 256))
    for inside, out in ((width, width), (width, 4 * width), (4 * width, width), (width, 7 * width), (5 * width, width)):
        for name, linear in LINEARS.items():
            measure = partial(linear_row, linear, rows, inside, out, setting)
            yield Row("micro", f"{name} linear, {rows} x {inside} x {out}", 3, measure, needs_gpu=name == "fp8")


class Attention:
    """One layer's attention at one length; inputs are drawn anew for each row, so that none holds memory for another.

    Args:
        image: tokens beside those of the text.
    """

    def __init__(self, setting: Setting, image: int):
        self.setting, self.image = setting, image
        self.text, self.heads = setting.either((TEXT, HEADS), (128, 2))
        self.tokens = self.text + image

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values (1, S, H, D)."""
        shape, device = (1, self.tokens, self.heads, HEAD_DIM), self.setting.device
        q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))
        return q, k, v

    def timed(self, work: Work, density: float = 1.0) -> Line:
        """Milliseconds, and the arithmetic done meanwhile."""
        ms = call_ms(work, self.setting.device, CALLS)
        work_done = 4 * self.tokens**2 * self.heads * HEAD_DIM * density
        return {"ms": ms, "tflops": work_done / ms / 1e9}

    def sdpa(self) -> Line:
        """The kernel that torch chooses."""
        q, k, v = self.inputs()
        return self.timed(lambda: dense(q, k, v))

    def by(self, backend: SDPBackend) -> Line:
        """One of torch's kernels."""
        q, k, v = self.inputs()
        with sdpa_kernel(backend):
            return self.timed(lambda: dense(q, k, v))

    def sage(self) -> Line:
        """SageAttention, and how far its output is from torch's."""
        q, k, v = self.inputs()
        right = dense(q, k, v).float()
        off = (sage_attention(q, k, v).float() - right).norm() / right.norm()
        return {**self.timed(lambda: sage_attention(q, k, v)), "error_share": float(off)}

    def sparse(self, keep: float) -> Line:
        """Block-sparse attention by a map, and the map."""
        q, k, v = self.inputs()
        grid = cut(self.image, self.text, 128, self.setting.device.type)
        kept, flex = block_map(sampled(q, k, grid), grid, keep), Flex()
        found = self.timed(lambda: sparse_attention(q, k, v, kept, grid, flex), grid.density(keep))
        map_ms = call_ms(lambda: block_map(sampled(q, k, grid), grid, keep), self.setting.device, CALLS)
        return {**found, "map_ms": map_ms, "density": grid.density(keep)}


def in_bf16(x: torch.Tensor, w: torch.Tensor) -> Work:
    """x (M, K) by w (N, K)."""
    return lambda: F.linear(x, w)


def in_int8(x: torch.Tensor, w: torch.Tensor) -> Work:
    """The bare product, without rounding the inputs and scaling the outputs."""
    left, right = ((each * 20).clamp(-127, 127).to(torch.int8) for each in (x, w * w.shape[1] ** 0.5))
    return lambda: torch._int_mm(left, right.t())


def in_fp8(x: torch.Tensor, w: torch.Tensor) -> Work:
    """The product with a scale per row and per column, without rounding the inputs."""
    left, right = (each.to(torch.float8_e4m3fn) for each in (x, w))
    a, b = (torch.ones(shape, device=x.device) for shape in ((len(x), 1), (1, len(w))))
    return lambda: torch._scaled_mm(
        left, right.t(), scale_a=a, scale_b=b, out_dtype=torch.bfloat16, use_fast_accum=True
    )


LINEARS = {"bf16": in_bf16, "int8": in_int8, "fp8": in_fp8}


def linear_row(linear: object, rows: int, inside: int, out: int, setting: Setting) -> Line:
    """Milliseconds of one product, and its arithmetic."""
    x = torch.randn(rows, inside, device=setting.device, dtype=torch.bfloat16)
    w = torch.randn(out, inside, device=setting.device, dtype=torch.bfloat16) / inside**0.5
    assert callable(linear)
    ms = call_ms(linear(x, w), setting.device)
    return {"ms": ms, "tflops": 2 * rows * inside * out / ms / 1e9}
