"""Whole denoisers: the reference models, and larger ones with random weights for time and memory alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from amdahl import gemm_rate, linear_shapes, linear_share
from common import interleaved
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel
from torch import nn

from stack import Stack
from stack.bounds import best_speedup
from stack.comparison.base import stand_in
from stack.loading import load
from stack.quant.linears.int8 import Int8Linear
from stack.reference.load import REFERENCES

from .libraries import quanto_in_place

Call = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A stack to time.

    Attributes:
        scheme: "" for the model's own precision.
        quanto: quanto's own 8-bit linears with fixed scales, which no scheme of ours is.
    """

    name: str
    scheme: str = ""
    backend: str = "auto"
    compiled: bool = False
    quanto: bool = False


CPU = (
    Variant("eager"),
    Variant("compiled", compiled=True),
    Variant("int8", "int8", "native"),
    Variant("int8 compiled", "int8", "native", compiled=True),
    Variant("int8 torchao compiled", "int8", "torchao", compiled=True),
    Variant("int8 bitsandbytes", "int8", "bitsandbytes"),
    Variant("int8 quanto (fixed scales)", quanto=True),
    Variant("int8-weight", "int8-weight", "native"),
    Variant("int4-weight", "int4-weight", "native"),
    Variant("nf4", "nf4", "native"),
    Variant("nf4 bitsandbytes", "nf4", "bitsandbytes"),
    Variant("fp8-weight", "fp8-weight", "native"),
)
CUDA = (
    Variant("eager"),
    Variant("compiled", compiled=True),
    Variant("int8 compiled", "int8", "torchao", compiled=True),
    Variant("fp8 compiled", "fp8", "torchao", compiled=True),
)


@dataclass(frozen=True)
class Case:
    """A denoiser and some calls of it.

    Attributes:
        pipe: its pipeline; None where weights are random.
        calls: the arguments of some calls, from noise to picture.
    """

    name: str
    denoiser: Any
    calls: list[Call]
    pipe: Any = None


def dit_12(device: str) -> Case:
    """12 layers, 768 wide, 1,024 tokens, random weights."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        sample_size=64, patch_size=2, in_channels=4, num_layers=12, num_attention_heads=12, attention_head_dim=64,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    call = {
        "hidden_states": torch.randn(1, 4, 64, 64, dtype=torch.bfloat16, device=device),
        "timestep": torch.tensor([500], device=device),
        "class_labels": torch.tensor([1], device=device),
    }
    return Case("dit-12x768 (random weights)", model.eval().to(device, torch.bfloat16), [call])


def flux_dev(device: str) -> Case:
    """FLUX.1-dev's shape at 1024 x 1024: 4,096 image and 512 text tokens, random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(64.0), torch.arange(64.0)).to(device)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    call = {
        "hidden_states": rows(1, 4096, 64), "encoder_hidden_states": rows(1, 512, 4096),
        "pooled_projections": rows(1, 768), "timestep": torch.full((1,), 0.5, dtype=torch.bfloat16, device=device),
        "guidance": torch.full((1,), 3.5, device=device), "img_ids": ids, "txt_ids": torch.zeros(512, 3, device=device),
    }  # fmt: skip
    return Case("flux-dev shape (random weights)", model, [call])


RANDOM: dict[str, Callable[[str], Case]] = {"dit-12x768": dit_12, "flux-dev": flux_dev}


def case_of(name: str, steps: int, device: str) -> Case:
    """A reference model with the calls of one picture, or a random one."""
    if name in RANDOM:
        return RANDOM[name](device)
    pipe = load(name, torch.bfloat16, device)
    seen: list[Call] = []
    names = inspect.signature(pipe.transformer.forward)  # DiT's pipeline hands its latent over by position
    handle = pipe.transformer.register_forward_pre_hook(
        lambda m, a, kw: seen.append(names.bind(*a, **kw).arguments), with_kwargs=True
    )
    try:
        pipe(REFERENCES[name].example, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
    finally:
        handle.remove()
    return Case(name, pipe.transformer, seen, pipe)


def stack_of(case: Case, variant: Variant) -> Stack:
    """The variant over new modules around the case's weights."""
    stack = Stack(stand_in(case.denoiser))
    if variant.scheme:
        stack.quantize(variant.scheme, backend=variant.backend)
    if variant.quanto:
        quanto_in_place(stack.denoiser, chosen_linears(case), case.calls)
    return stack.compile() if variant.compiled else stack


def chosen_linears(case: Case) -> list[str]:
    """The linears that int8 converts."""
    with Stack(stand_in(case.denoiser)).quantize("int8", backend="native") as stack:
        return [path for path, module in stack.denoiser.named_modules() if isinstance(module, Int8Linear)]


def limit_of(case: Case, quick: bool) -> tuple[float, float]:
    """Share of an eager call's time in the linears that int8 converts, and how much faster their bare products are."""
    paths, denoiser = chosen_linears(case), case.denoiser

    def run() -> object:
        return denoiser(**case.calls[0])

    repeats = 3 if quick else 15
    shapes = linear_shapes(denoiser, run, paths)
    return linear_share(denoiser, run, paths, repeats), gemm_rate(shapes, denoiser.dtype, denoiser.device, repeats)


def _synced(stack: Stack, call: Call, device: str) -> object:
    out = stack.apply().denoiser(**call)
    if device != "cpu":
        torch.cuda.synchronize()
    return out


@torch.no_grad()
def measure_denoiser(
    case: Case, variants: tuple[Variant, ...], rounds: int, quick: bool, device: str
) -> list[dict[str, Any]]:
    """One row per variant: time of a call, gain, share of Amdahl's limit, memory of the weights, error by sigma.

    A variant that does not run here has its reason in `failed` and no figures.
    """
    stacks = {variant.name: stack_of(case, variant) for variant in variants}
    middle = case.calls[len(case.calls) // 2]
    wanted = outputs(case.denoiser, case.calls)
    errors, failed = dict[str, list[float]](), list[dict[str, Any]]()
    for name, stack in list(stacks.items()):
        try:
            errors[name] = errors_by_sigma(outputs(stack.apply().denoiser, case.calls), wanted)
        except Exception as error:  # a library's own compile errors have no common class
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            failed.append({"model": case.name, "variant": name, "failed": reason})
            stacks.pop(name).undo()
    variants = tuple(variant for variant in variants if variant.name in stacks)
    runs = {name: (lambda stack=stack: _synced(stack, middle, device)) for name, stack in stacks.items()}
    seconds = interleaved(runs, rounds)
    share, rate = limit_of(case, quick)
    rows = []
    for variant in variants:
        like = "compiled" if variant.compiled else "eager"
        # The linears take as long in both; what is compiled around them makes their share larger.
        allowed = best_speedup([min(1.0, share * seconds["eager"] / seconds[like])], [rate])
        figures = stacks[variant.name].report().passes.get("quantize", {})
        gain = seconds[like] / seconds[variant.name]
        rows.append({
            "model": case.name, "variant": variant.name, "ms": 1e3 * seconds[variant.name],
            "over eager": seconds["eager"] / seconds[variant.name],
            "over compiled": seconds["compiled"] / seconds[variant.name], "over like": gain,
            "allowed": allowed if variant.scheme == "int8" else None,
            "of the limit": gain / allowed if variant.scheme == "int8" else None,
            "weights over bf16": figures["weight_bytes"] / figures["original_bytes"] if figures else None,
            "error by sigma": errors[variant.name], "worst error": max(errors[variant.name]),
        })  # fmt: skip
    for stack in stacks.values():
        stack.undo()
    return [*rows, *({**dict.fromkeys(rows[0]), **each} for each in failed)]


def outputs(denoiser: nn.Module, calls: list[Call]) -> list[torch.Tensor]:
    """What each call returns, in float32."""
    return [denoiser(**{**call, "return_dict": False})[0].float() for call in calls]


def errors_by_sigma(got: list[torch.Tensor], wanted: list[torch.Tensor], bins: int = 5) -> list[float]:
    """Relative error of the output in equal shares of the schedule, from noise to picture."""
    pairs, found = list(zip(got, wanted, strict=True)), []
    for part in range(min(bins, len(pairs))):
        chosen = pairs[part * len(pairs) // bins : (part + 1) * len(pairs) // bins] or pairs[part : part + 1]
        missed = sum(float((a - b).square().sum()) for a, b in chosen)
        found.append((missed / sum(float(b.square().sum()) for _, b in chosen)) ** 0.5)
    return found
