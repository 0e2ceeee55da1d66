"""Disturbances harsher than any scheme here, put in quantization's place: W6A6, and noise added to every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, ClassVar

import torch
from torch import nn

from stack.core.facts import Facts
from stack.core.installer import Installer
from stack.core.passes import Applied, Finding
from stack.runtime.target import Target


def rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Each row rounded to `bits` bits, symmetric, and back."""
    levels = 2 ** (bits - 1) - 1
    scale = values.abs().amax(-1, keepdim=True).clamp_min(1e-12) / levels
    return (values / scale).round().mul(scale)


@dataclass(frozen=True)
class Rounding:
    """W6A6 and the like, simulated: weights rounded once, activations row by row on every call."""

    bits: int = 6
    stage: ClassVar[str] = "quantize"

    def describe(self, facts: Facts) -> list[str]:
        return [f"simulated W{self.bits}A{self.bits} in the large linears"]

    def check(self, facts: Facts) -> list[Finding]:
        return []

    def facts_after(self, facts: Facts) -> Facts:
        return replace(facts, weight_bits=self.bits, activation_bits=self.bits)

    def apply(self, target: Target, install: Installer) -> Applied:
        count = 0
        for _, block in target.wiring.blocks(target.denoiser):
            for path, module in block.named_modules():
                if isinstance(module, nn.Linear) and target.wiring.role(path):
                    install.set_data(module, "weight", rounded(module.weight.data.float(), self.bits).to(module.weight))
                    install.wrap_call(module, "forward", self._wrapped)
                    count += 1
        return Applied(f"{count} linears at {self.bits} bits, simulated")

    def _wrapped(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)
        def forward(x: torch.Tensor) -> Any:
            return inner(rounded(x.float(), self.bits).to(x))

        return forward


@dataclass(frozen=True)
class Noise:
    """Every block's output streams disturbed by noise of its own on every call: `share` of their root mean square.

    Seeded by how often it was called, so that equal runs see equal noise.
    """

    share: float = 0.02
    stage: ClassVar[str] = "quantize"

    def describe(self, facts: Facts) -> list[str]:
        return [f"noise of {self.share:.0%} on what every block returns"]

    def check(self, facts: Facts) -> list[Finding]:
        return []

    def facts_after(self, facts: Facts) -> Facts:
        return facts

    def apply(self, target: Target, install: Installer) -> Applied:
        generator = torch.Generator().manual_seed(0)
        blocks = target.wiring.blocks(target.denoiser)
        for _, block in blocks:
            install.wrap_call(block, "forward", partial(_noisy, self.share, generator))
        return Applied(f"{len(blocks)} blocks disturbed", reset=lambda: None)


def _noisy(share: float, generator: torch.Generator, inner: Callable[..., Any]) -> Callable[..., Any]:
    def disturbed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return tuple(map(disturbed, x))
        noise = torch.randn(x.shape, generator=generator).to(x)
        return x + noise * (share * x.float().square().mean().sqrt()).to(x)

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return disturbed(inner(*args, **kwargs))

    return forward
