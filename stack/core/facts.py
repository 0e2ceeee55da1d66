"""What is true of a model at one point of the stack. Passes read facts and say how they change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import choose


@dataclass(frozen=True)
class Machine:
    """What the processor computes fast. Read from torch's own capability flags, never from a clock: the same
    machine always gets the same plan. `capability` is CUDA's compute capability, `fp16_sums` whether this process lets
    CUDA add up fp16 products in fp16."""

    device: str
    vector: str = ""
    fast_bf16: bool = True
    vnni: bool = False
    amx: bool = False
    capability: tuple[int, int] = (0, 0)
    fp16_sums: bool = False


def machine_of(device: torch.device) -> Machine:
    """The machine a tensor on `device` is computed by."""
    if device.type != "cpu":
        if device.type != "cuda":
            return Machine(device.type)
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        fp16_sums = torch.backends.cuda.matmul.allow_fp16_accumulation
        return Machine(device.type, vector=name, capability=capability, fp16_sums=fp16_sums)
    return Machine(
        device="cpu",
        vector=torch.backends.cpu.get_cpu_capability(),
        # Without these instructions oneDNN computes bf16 ten times slower than fp32.
        fast_bf16=torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        vnni=torch.cpu._is_vnni_supported(),
        amx=torch.cpu._is_amx_tile_supported(),
    )


# What `--assume` plans for, by name: (name, compute capability).
ASSUMED = {
    "a100": ("NVIDIA A100", (8, 0)),
    "l40s": ("NVIDIA L40S", (8, 9)),
    "rtx4090": ("NVIDIA GeForce RTX 4090", (8, 9)),
    "h100": ("NVIDIA H100", (9, 0)),
    "h200": ("NVIDIA H200", (9, 0)),
    "b200": ("NVIDIA B200", (10, 0)),
    "rtx5090": ("NVIDIA GeForce RTX 5090", (12, 0)),
}


def assumed_machine(kind: str) -> Machine:
    """A machine of this kind, which need not be here: "cpu" is the CPU that is.

    Raises:
        StackError: unknown kind.
    """
    if kind == "cpu":
        return machine_of(torch.device("cpu"))
    if kind not in ASSUMED:
        raise choose("machine", kind, ["cpu", *ASSUMED])
    name, capability = ASSUMED[kind]
    return Machine("cuda", vector=name, capability=capability)


def best_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the machine computes it fast, fp32 elsewhere. Never fp16 on a CPU."""
    return torch.bfloat16 if machine_of(device).fast_bf16 else torch.float32


@dataclass(frozen=True)
class Facts:
    """Facts of a denoiser, before or after some passes.

    Attributes:
        family: wiring name, such as "flux".
        blocks: number of transformer blocks.
        width: hidden width D.
        heads, head_dim: attention heads and their size.
        image_tokens, text_tokens: length of the two streams; 0 where unknown. A video's tokens are image tokens.
        steps: denoiser steps the stack is planned for.
        called: steps of the call that the plan is for; 0 where it is made ahead of calls.
        ladder: steps of the scheduler, of which a solver takes `steps`; 0 where there is none.
        guidance: "none", "embedded" or "cfg".
        weight_bits, activation_bits: precision inside the large linears.
        rounds_in_steps: whether the library that rounds activations does it in operations of their own.
        attention_density: share of attention blocks that are computed.
        attention_bits: of queries and keys inside dense attention.
        dense_attention: kernel that is asked for where attention is exact; "torch" for torch's choice.
        switches: shares of the schedule, in [0, 1], at which the way a step is computed changes: dense or sparse
            attention, one precision or another.
        adapters: name and content of the adapters in the weights or beside them.
        schedule: noise levels of an adapter's schedule; () where the scheduler makes them.
        levels: (unshifted time, log of signal over noise) of every step; () where they are not known ahead of a call.
        distilled: the card that the steps and the schedule come from, or "".
        origin: hub id of the model, or the last part of its path; "" where unknown.
        pipeline: whether a whole pipeline is there, or a bare denoiser.
        pipeline_class: name of the pipeline's class; "" for a bare denoiser.
        denoiser_class: name of the denoiser's class.
        denoisers: how many of it share the steps of a run.
        config: entries of the denoiser's configuration.
        grid: of the image tokens at the pipeline's default size, (rows, columns) or (frames, rows, columns); () where
            unknown. A call may have another, see `stack.models.grid.RequestGrid`.
        lists: number of blocks in each of the wiring's block lists.
        sampler: why a run of the pipeline's sampler is no sum of its estimates of x0; "" where it is, and for a bare
            denoiser of a flow.
        flow: whether the denoiser's output is a velocity, noise - x0.
        carries: what other libraries have put on the model, see `stack.models.preexisting`.
        compiled: mode its blocks are compiled in; "" where they are not.
        linears: path, outputs and inputs of every linear of the denoiser; () where unknown.
        latent: numbers per image token in the denoiser's input and in its output; 0 where unknown. Where only their
            ratio is known, that.
        lacks: what the model does not get, and why: "blocks", "range", "modules", ..., see `Wiring.lacks`.
        wiring: how it is wired, a `stack.models.layout.Wiring`; None where only the family is known.
    """

    family: str
    machine: Machine
    dtype: str
    blocks: int
    width: int
    heads: int
    head_dim: int
    image_tokens: int
    text_tokens: int
    steps: int
    called: int = 0
    ladder: int = 0
    guidance: str = "none"
    weight_bits: int = 16
    activation_bits: int = 16
    attention_density: float = 1.0
    attention_bits: int = 16
    dense_attention: str = "torch"
    switches: tuple[float, ...] = ()
    adapters: tuple[str, ...] = ()
    schedule: tuple[float, ...] = ()
    levels: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    distilled: str = ""
    origin: str = ""
    quantized_by: str = ""
    rounds_in_steps: bool = False
    pipeline: bool = True
    pipeline_class: str = ""
    denoiser_class: str = ""
    denoisers: int = 1
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    grid: tuple[int, ...] = ()
    lists: tuple[int, ...] = ()
    linears: tuple[tuple[str, int, int], ...] = field(default=(), repr=False)
    latent: tuple[int, int] = (0, 0)
    sampler: str = ""
    flow: bool = True
    carries: tuple[str, ...] = ()
    compiled: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict, repr=False)
    wiring: Any = field(default=None, repr=False, compare=False)

    @property
    def asked(self) -> int:
        """Steps that a pipeline call asks for."""
        return self.ladder or self.steps

    @property
    def item_bytes(self) -> int:
        """Bytes of a number as the model computes."""
        return 4 if self.dtype == "float32" else 2

    @property
    def tokens(self) -> int:
        """Length of the joint sequence."""
        return self.image_tokens + self.text_tokens

    @property
    def returns_latent(self) -> bool:
        """Whether the output is about the latent: no more numbers than go in, or as many again for a variance."""
        into, out = self.latent
        return into >= out or out == 2 * into

    @property
    def rounds_activations(self) -> bool:
        """Whether activations are rounded anew on every step."""
        return self.activation_bits < 16
