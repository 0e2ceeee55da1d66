"""Compiled blocks: torch.compile around each block, on what the passes below made of it."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, ClassVar

import torch
from torch import nn

from .compat import preexisting
from .compat.rules.compilers import RECOMPILE_LIMIT, ROUNDED_EAGERLY, SPARSE_BREAKS_GRAPH
from .compat.rules.sage import FP16_SUMS
from .core.errors import StackError, choose
from .core.facts import Facts
from .core.installer import Installer
from .core.passes import Applied, Finding, field_options
from .core.validate import check_fields
from .models.parallel import behind_split
from .runtime.target import Target

OFF = "off"


@dataclass(frozen=True)
class Compile:
    """Regional compilation: the repeated blocks one by one, as diffusers' `compile_repeated_blocks` does.

    Blocks of one class share their compiled code, so a deep model compiles as fast as a shallow one. It comes after
    quantization and sparse attention, whose element-wise operations are fused with the blocks', and before the cache,
    whose decisions are Python and must not be traced.

    The plan adds this pass by itself on CUDA under `quantize("int8")` and `quantize("fp8")`.

    Attributes:
        mode: of `torch.compile`: "default", "max-autotune-no-cudagraphs", ... "off" compiles nothing, also where the
            plan would add the pass.
    """

    mode: str = "default"
    stage: ClassVar[str] = "compile"

    def __post_init__(self) -> None:
        check_fields(self, self.stage)
        known = [*torch._inductor.list_mode_options(), OFF]
        if self.mode not in known:
            raise choose("compile mode", self.mode, known)

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, those at their defaults left out."""
        return field_options(self)

    def describe(self, facts: Facts) -> list[str]:
        if self.mode == OFF:
            return ["off: the blocks run as the passes below leave them"]
        return [
            f"{facts.blocks} blocks, mode {self.mode}; blocks of one class share their code",
            "the first call at each size compiles, half a minute on a CPU; once per machine while its cache is kept",
        ]

    def check(self, facts: Facts) -> list[Finding]:
        if self.mode == OFF:
            return _eager(facts, self.stage)
        found = preexisting.compiled(facts, self.stage)
        rounded = facts.attention_bits < 16
        if facts.attention_density < 1 or rounded or facts.dense_attention != "torch":
            kind = "8-bit" if rounded else "sparse" if facts.attention_density < 1 else "another kernel's"
            what = f"{facts.blocks} blocks have {kind} attention in them, which is not compiled with them"
            found.append(Finding.of(SPARSE_BREAKS_GRAPH, self.stage, what, note=True))
        if rounded and facts.machine.fp16_sums:
            what = f"{facts.blocks} compiled blocks, 8-bit attention, and products added up in fp16"
            found.append(Finding.of(FP16_SUMS, self.stage, what, note=True))
        return found

    def facts_after(self, facts: Facts) -> Facts:
        return facts if self.mode == OFF else replace(facts, compiled=self.mode)

    def apply(self, target: Target, install: Installer) -> Applied:
        """Wrap the blocks.

        Raises:
            StackError: torch has no compiler to hand its code to.
        """
        if self.mode == OFF:
            return Applied("off: 0 blocks compiled, as asked for")
        device = target.facts.machine.device
        if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
            raise StackError("compile() needs a C++ compiler on this device, found none: install g++, or leave it out")
        blocks = target.wiring.blocks(target.denoiser) or _repeated(target.denoiser)
        install.set_attribute(target, "compile_mode", self.mode)
        for _, block in blocks:
            install.wrap_call(*behind_split(block), partial(compiled, mode=self.mode))
        done = f"{len(blocks)} blocks compiled at their first call, mode {self.mode}"
        return Applied(done, warnings=_beyond_limit([block for _, block in blocks]))


def compiled(forward: Callable[..., Any], mode: str, backend: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A module's forward, compiled at its first call. With mode "" it stays as it is.

    Args:
        backend: of `torch.compile`, in place of its own, which then takes care of the mode.
    """
    if not mode:
        return forward
    made = (
        torch.compile(forward, backend=backend)
        if backend
        else torch.compile(forward, mode=None if mode == "default" else mode)
    )

    @wraps(forward)  # whoever stands before the block reads its signature
    def called(*args: Any, **kwargs: Any) -> Any:
        return made(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})

    return called


def _repeated(denoiser: Any) -> list[tuple[str, nn.Module]]:
    """The modules that diffusers compiles one by one in a model without a list of blocks, such as a U-Net."""
    kinds = type(denoiser)._repeated_blocks or ()
    return [(path, module) for path, module in denoiser.named_modules() if type(module).__name__ in kinds]


def _plain(value: Any) -> Any:
    """A tensor with a batch of one, with the stride that this dimension has in a contiguous tensor.

    FLUX's single blocks return a slice of a longer tensor. In a batch of one its stride means nothing, but the compiler
    looks at it: the second block would be compiled again.
    """
    one = isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == 1
    return value[0][None] if one else value


def _eager(facts: Facts, stage: str) -> list[Finding]:
    """What it costs to compile nothing."""
    if not (facts.rounds_in_steps and facts.rounds_activations and facts.machine.device == "cuda"):
        return []
    return [Finding.of(ROUNDED_EAGERLY, stage, "activations are rounded without a compiler, as asked for", note=True)]


def _beyond_limit(blocks: Sequence[nn.Module]) -> list[str]:
    """Which classes of blocks are built in more ways than the compiler keeps versions of a function."""
    limit, kinds = torch._dynamo.config.recompile_limit, defaultdict[str, set[Hashable]](set)
    for block in blocks:
        kinds[type(block).__name__].add(tuple((name, type(part)) for name, part in block.named_modules()))
    return [
        RECOMPILE_LIMIT.annotate(f"{len(ways)} kinds of {name}, of which {limit} are compiled")
        for name, ways in kinds.items()
        if len(ways) > limit
    ]
