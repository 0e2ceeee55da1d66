"""A LoRA file against a model: every key, size, factor and number is checked before anything changes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import annotated_types as limits
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..core.errors import StackError
from ..core.files import reason
from ..core.validate import checked

DOWN, UP, BIAS, ALPHA = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".alpha"
PARTS = (DOWN, UP, BIAS, ALPHA)
UNKNOWN_KINDS = ("dora_scale", "lora_magnitude_vector")
LARGEST_ALPHA = 1e5  # published ones are at most a few times their rank
Alpha = Annotated[float, limits.Ge(-LARGEST_ALPHA), limits.Le(LARGEST_ALPHA)]
METADATA = "lora_adapter_metadata"  # where diffusers and peft keep a LoRA's configuration


@dataclass(frozen=True)
class LowRank:
    """The update of one linear: scaling * up @ down, and `bias` on top.

    Attributes:
        down: (R, K) and up: (N, R), as in the file.
        scaling: alpha / R.
        bias: (N,), or None.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float
    bias: torch.Tensor | None = None

    def delta(self, device: torch.device | None = None) -> torch.Tensor:
        """The update (N, K) of the weight, in fp32.

        Args:
            device: to multiply on; None for that of the file's tensors.
        """
        return self.up.to(device).float() @ self.down.to(device).float() * self.scaling


@dataclass(frozen=True)
class LoraFile:
    """Tensors of a file, and what its header says of alpha.

    Attributes:
        name: of the file.
        state: tensors by key.
        alpha: of every module; None where the header does not say.
    """

    name: str
    state: dict[str, torch.Tensor]
    alpha: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every key is one of peft's own."""
        return all(key.endswith(PARTS) for key in self.state)


def read_lora(path: Path) -> LoraFile:
    """A LoRA file as it is.

    Raises:
        StackError: not a safetensors file, empty, or of a kind (DoRA, rank-stabilised) that is no plain LoRA.
    """
    try:
        with safe_open(path, "pt") as file:
            state, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  # no dict: not iterable
    except (OSError, SafetensorError, ValueError) as error:
        raise StackError(f"cannot read {path.name} as safetensors: {reason(error)}") from None
    if not state:
        raise StackError(f"{path.name} holds no tensors: expected a LoRA")
    if odd := [key for key in state if any(kind in key for kind in UNKNOWN_KINDS)]:
        raise StackError(f"{path.name} is a DoRA ({odd[0]}): expected a plain LoRA; merge it with peft first")
    for key, tensor in state.items():
        # In any layout, since converters multiply the factors with it. NaN and infinity are reported with all others.
        extreme = key.endswith(ALPHA) and (tensor.numel() != 1 or not 0 < abs(float(tensor)) <= LARGEST_ALPHA)
        if extreme and bool(tensor.float().isfinite().all()):
            raise _misfit(path.name, f"expected one alpha other than 0, at most {LARGEST_ALPHA:g}", [key])
    return LoraFile(path.name, state, _header_alpha(header, path.name))


def _header_alpha(header: Mapping[str, str], name: str) -> float | None:
    try:
        config = checked(dict[str, Any], json.loads(header.get(METADATA, "{}")), f"{name}: {METADATA}")
    except (ValueError, RecursionError) as error:
        raise StackError(str(error) if name in str(error) else f"{name}: {METADATA} is no JSON ({error})") from None
    values = {key.rpartition(".")[2]: value for key, value in config.items()}
    if values.get("use_rslora") or values.get("alpha_pattern"):
        raise StackError(f"{name} has scaling of its own per module (rslora or alpha_pattern): expected one alpha")
    alpha = values.get("lora_alpha")
    return None if alpha is None else checked(Alpha, alpha, f"{name}: lora_alpha")


def linears_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Modules by path that are a linear, quantized or not."""
    return {
        path: module
        for path, module in denoiser.named_modules()
        if {"in_features", "out_features"} <= vars(module).keys()
    }


def updates(
    file: LoraFile, denoiser: nn.Module, component: str = "transformer", alpha: float | None = None
) -> dict[str, LowRank]:
    """The update of each linear of a denoiser, by path.

    Args:
        component: the denoiser's name in its pipeline, with which keys may begin.
        alpha: the card's, for every module; 0 for the rank, None for what the file says.

    Raises:
        StackError: keys of another model or of no LoRA, sizes that do not fit, NaN or infinity, or an alpha that some
            modules lack. The first few of each are named.
    """
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in file.state.items():
        part = next((part for part in PARTS if key.endswith(part)), None)
        if part is None:
            raise _misfit(file.name, f"expected keys ending in {', '.join(PARTS)}", [key])
        path = key.removesuffix(part)
        for prefix in (f"{component}.", "transformer."):
            path = path.removeprefix(prefix)
        if part in modules.setdefault(path, {}):
            raise _misfit(file.name, "expected every module once", [key])
        modules[path][part] = tensor
    linears = linears_of(denoiser)
    if foreign := sorted(modules.keys() - linears.keys()):
        raise _misfit(file.name, "expected LoRA keys of its linears", foreign)
    for path, parts in modules.items():
        _check(file.name, path, parts, linears[path])
    scaling = _scalings(file, modules, alpha)
    for path, parts in modules.items():
        largest = math.prod(float(parts[part].abs().max()) for part in (DOWN, UP)) * len(parts[DOWN])
        if largest * abs(scaling[path]) > torch.finfo(torch.float32).max:
            raise _misfit(file.name, "expected factors whose product float32 can hold", [path])
    return {p: LowRank(m[DOWN], m[UP], scaling[p], m.get(BIAS)) for p, m in modules.items()}


def _check(name: str, path: str, parts: Mapping[str, torch.Tensor], linear: nn.Module) -> None:
    if DOWN not in parts or UP not in parts:
        raise _misfit(name, f"expected both {DOWN} and {UP}", [path])
    down, up = parts[DOWN], parts[UP]
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or not len(down):
        what = f"expected (R, K) and (N, R) of one rank R, found {tuple(down.shape)} and {tuple(up.shape)}"
        raise _misfit(name, what, [path])
    wanted, found = (linear.out_features, linear.in_features), (len(up), down.shape[1])
    if wanted != found:
        what = f"made for another base: expected a linear of {_size(found)}, the model's is {_size(wanted)}"
        raise _misfit(name, what, [path])
    if BIAS in parts and (linear.bias is None or parts[BIAS].shape != (len(up),)):
        raise _misfit(name, f"expected no {BIAS} or one per output of a linear with a bias", [path])
    for part, tensor in parts.items():
        if part != ALPHA and not tensor.is_floating_point():
            raise _misfit(name, f"expected floating-point factors, found {tensor.dtype}", [path + part])
        if not bool(tensor.float().isfinite().all()):
            raise _misfit(name, "expected finite numbers, found NaN or infinity", [path + part])


def _size(shape: tuple[Any, Any]) -> str:
    return f"{shape[1]} in and {shape[0]} out features"


def _scalings(
    file: LoraFile, modules: Mapping[str, Mapping[str, torch.Tensor]], alpha: float | None
) -> dict[str, float]:
    """alpha / rank by module: the card's alpha, or each module's own, or the header's, or the rank."""
    ranks = {path: len(parts[DOWN]) for path, parts in modules.items()}
    values = {path: float(parts[ALPHA]) for path, parts in modules.items() if ALPHA in parts}
    if alpha is None and values and (missing := sorted(ranks.keys() - values.keys())):
        what = f"{len(missing)} of {len(ranks)} modules have no alpha: expected one for each, or alpha in the card"
        raise _misfit(file.name, what, missing)
    if alpha is None and not values and file.alpha is None and len(set(ranks.values())) > 1:
        # Loaders disagree on what alpha is here: each module's rank, or the first one's.
        what = f"no alpha and ranks from {min(ranks.values())} to {max(ranks.values())}: expected alpha in the card"
        raise _misfit(file.name, what, sorted(ranks))
    common = alpha if alpha is not None else file.alpha
    if alpha is None and values:
        return {path: values[path] / rank for path, rank in ranks.items()}
    return {path: common / rank if common else 1.0 for path, rank in ranks.items()}


def _misfit(name: str, what: str, where: list[str]) -> StackError:
    more = f" and {len(where) - 3} more" if len(where) > 3 else ""
    return StackError(f"{name} does not fit this model: {what}; found {', '.join(where[:3])}{more}")
