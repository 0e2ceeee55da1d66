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
    """The update of one linear or convolution: scaling * up @ down, and `bias` on top.

    Attributes:
        down: (R, K) and up: (N, R), as in the file; of a convolution (R, K, height, width) and (N, R, 1, 1).
        scaling: alpha / R.
        bias: (N,), or None.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float
    bias: torch.Tensor | None = None

    def delta(self, device: torch.device | None = None) -> torch.Tensor:
        """The update of the weight, in its shape (N, K) or (N, K, height, width), in fp32.

        Args:
            device: to multiply on; None for that of the file's tensors.
        """
        product = self.up.to(device).float().flatten(1) @ self.down.to(device).float().flatten(1)
        return product.view(len(self.up), *self.down.shape[1:]) * self.scaling


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
    if "lora_alpha" in values:
        return checked(Alpha, values["lora_alpha"], f"{name}: lora_alpha")
    return _plain_alpha(header, name) if "alpha" in header else None


def _plain_alpha(header: Mapping[str, str], name: str) -> float:
    """Of files that have it as an entry of its own in their header (MiniMax-H3)."""
    try:
        return checked(Alpha, float(header["alpha"]), f"{name}: alpha")
    except ValueError:
        raise StackError(f"{name}: expected a number as alpha in its header, got {header['alpha']!r}") from None


def layers_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Modules by path that can have an update: linears, quantized or not, and plain 2-D convolutions."""
    return {
        path: module
        for path, module in denoiser.named_modules()
        if {"in_features", "out_features"} <= vars(module).keys() or _is_convolution(module)
    }


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"


def updates(
    file: LoraFile, denoiser: nn.Module, component: str = "transformer", alpha: float | None = None
) -> dict[str, LowRank]:
    """The update of each linear and convolution of a denoiser, by path.

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
    linears = layers_of(denoiser)
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
    axes, shape = ("R, K", "N, R") if "in_features" in vars(linear) else ("R, K, H, W", "N, R, 1, 1"), down.shape
    odd = down.ndim != len(axes[0].split(",")) or up.ndim != down.ndim or set(up.shape[2:]) - {1}
    if odd or len(down) != up.shape[1] or not len(down):
        what = f"expected ({axes[0]}) and ({axes[1]}) of one rank R, found {tuple(shape)} and {tuple(up.shape)}"
        raise _misfit(name, what, [path])
    wanted, found = _shape(linear), (len(up), *shape[1:])
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


def _shape(layer: nn.Module) -> tuple[Any, ...]:
    """Shape of the weight, which may be packed: it is told from the layer's own entries."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels, *layer.kernel_size
    return layer.out_features, layer.in_features


def _size(shape: tuple[Any, ...]) -> str:
    kernel = f", {shape[2]} x {shape[3]}" if len(shape) > 2 else ""
    return f"{shape[1]} in and {shape[0]} out features{kernel}"


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
