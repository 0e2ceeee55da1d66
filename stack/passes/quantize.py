"""The quantization pass: int8 weights and activations inside the blocks' large linears."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from ..errors import StackError, choose
from ..facts import Facts, machine_of
from ..install import Installer
from ..models.wiring import FAMILIES
from ..quant import torchao
from ..quant.kernels import check_exact, kernel_for
from ..quant.native import convert_group
from ..quant.select import Choice, choose_linears, grouped, row_gain, weight_bytes
from ..quant.shared import SharedRows
from .base import Applied, Finding, Target

SCHEMES = ("int8",)
BACKENDS = ("auto", "native", "torchao")


def backend_for(wanted: str, device: str) -> str:
    """The backend a device gets: native on a CPU, torchao on CUDA, unless one is asked for."""
    return wanted if wanted != "auto" else {"cpu": "native", "cuda": "torchao"}.get(device, "")


@dataclass(frozen=True)
class Quantize:
    """Weights rounded once per output channel, activations on the fly per token; both symmetric int8.

    Embedders, modulation, norms and the output projection stay in floating point, and so does a text stream too short
    to gain. The originals are kept and come back bit for bit on undo.

    Attributes:
        scheme: "int8".
        backend: "native" (torch's own int8 products), "torchao" (`pip install torchao`), or "auto".
        min_features: linears with fewer inputs or outputs stay.

    Raises:
        StackError: unknown scheme or backend.
    """

    stage: ClassVar[str] = "quantize"
    scheme: str = "int8"
    backend: str = "auto"
    min_features: int = 128

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise choose("quantization scheme", self.scheme, SCHEMES)
        if self.backend not in BACKENDS:
            raise choose("quantization backend", self.backend, BACKENDS)

    def describe(self, facts: Facts) -> list[str]:
        """What is rounded, by which kernel, what stays and why."""
        backend = backend_for(self.backend, facts.machine.device)
        why = "asked for" if self.backend != "auto" else f"the choice for {facts.machine.device}"
        roles = " and ".join(FAMILIES[facts.family].linears) if facts.family in FAMILIES else "large"
        kept = row_gain(facts.text_tokens, facts.width)
        family = FAMILIES.get(facts.family)
        text = "text stream's own linears stay: " + kept if kept else "text stream's linears are converted too"
        return [
            f"int8 weights (per channel) and activations (per token) in the {roles} linears of {facts.blocks} blocks",
            f"backend {backend}: {why}; {_kernel_line(backend, facts)}",
            "embedders, modulation and output projection stay: error amplification",
            *([f"the {text}"] if family and "text" in family.streams else []),
            f"linears under {self.min_features} features stay: no gain",
        ]

    def check(self, facts: Facts) -> list[Finding]:
        """Already quantized, no kernel for the device, or nothing large enough to convert."""
        found = []
        if facts.weight_bits < 16 or facts.quantized_by:
            by = f" by {facts.quantized_by}" if facts.quantized_by else ""
            found.append(
                Finding(
                    self.stage,
                    f"the model is already quantized{by} to {facts.weight_bits} bits",
                    why="rounding rounded weights adds error and no speed; load it unquantized or leave quantize() out",
                    fatal=True,
                )
            )
        if not backend_for(self.backend, facts.machine.device):
            what = f"no int8 kernel is known for {facts.machine.device}: expected cpu or cuda"
            found.append(Finding(self.stage, what, fatal=True))
        if facts.image_tokens and row_gain(facts.image_tokens, facts.width):
            what = f"{facts.image_tokens} image tokens of width {facts.width} are too few for int8 to be faster"
            found.append(Finding(self.stage, what, why="rounding the rows costs what the product gains", note=True))
        if facts.width < self.min_features:
            what = f"no linear would be converted: the model is {facts.width} wide, min_features is {self.min_features}"
            found.append(Finding(self.stage, what, why=f"try min_features={facts.width}", fatal=True))
        return found

    def facts_after(self, facts: Facts) -> Facts:
        """8-bit linears."""
        by = backend_for(self.backend, facts.machine.device)
        return replace(facts, weight_bits=8, activation_bits=8, quantized_by=by)

    def apply(self, target: Target, install: Installer) -> Applied:
        """Replace the linears.

        Raises:
            StackError: none qualifies, the kernel is not exact here, or torchao is missing. Nothing is changed then.
        """
        device = next(target.denoiser.parameters()).device
        backend = backend_for(self.backend, device.type)
        multiple = 1 if backend == "native" and device.type == "cpu" else torchao.MULTIPLE
        choices = choose_linears(target.denoiser, target.wiring, self.min_features, target.facts.text_tokens, multiple)
        chosen = [c for c in choices if not c.kept]
        if not chosen:
            raise StackError(f"0 of {len(choices)} linears can be converted to int8: {_reasons(choices)}")
        before = weight_bytes(target.denoiser, choices)
        kept = {c.path: c.kept for c in choices if c.kept}
        converted, after, shared = _convert(target.denoiser, choices, backend, device)
        for path, module in converted.items():
            install.replace_module(target.denoiser, path, module)
        summary = (
            f"{len(chosen)} of {len(choices)} linears converted to int8 "
            f"(weights {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB)"
        )
        return Applied(
            summary,
            report=lambda: {"converted": len(chosen), "linears": len(choices), "weight_bytes": after},
            reset=lambda: _clear(shared),
            details={"backend": backend, "converted": list(converted), "kept": kept},
        )


def _convert(
    denoiser: nn.Module, choices: list[Choice], backend: str, device: torch.device
) -> tuple[dict[str, nn.Module], int, list[SharedRows]]:
    """New modules by path, their bytes, and what they share. Changes nothing."""
    if backend == "torchao":
        done = {c.path: torchao.convert(_linear(denoiser, c)) for c in choices if not c.kept}
        return dict(done), sum(torchao.held_bytes(m) for m in done.values()), []
    kernel = kernel_for(machine_of(device))
    if device.type == "cpu":
        check_exact(kernel)
    converted: dict[str, nn.Module] = {}
    held, shared = 0, []
    for group in grouped(choices):
        modules, rows = convert_group([_linear(denoiser, c) for c in group], kernel)
        converted |= {c.path: module for c, module in zip(group, modules, strict=True)}
        held += sum(module.packed.bytes for module in modules)
        shared.append(rows)
    return converted, held, shared


def _clear(shared: list[SharedRows]) -> None:
    for rows in shared:
        rows.clear()


def _linear(denoiser: nn.Module, choice: Choice) -> nn.Linear:
    module = denoiser.get_submodule(choice.path)
    assert isinstance(module, nn.Linear)
    return module


def _kernel_line(backend: str, facts: Facts) -> str:
    if backend == "torchao":
        return "torchao's own kernels, which gain only under torch.compile"
    return kernel_for(facts.machine).why


def _reasons(choices: list[Choice]) -> str:
    """Every reason with its count."""
    reasons = [c.kept for c in choices]
    return "; ".join(f"{reasons.count(reason)} x {reason}" for reason in dict.fromkeys(reasons)) or "no linears found"
