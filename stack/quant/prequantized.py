"""What a model's linears already are: quantized by a library while it was loaded, or by a saved stack."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .backends.base import storage_bytes
from .linears.int8 import Int8Linear
from .linears.weight_only import WeightOnlyLinear


def quantized_by(denoiser: Any) -> str:
    """Name of the library a model was quantized by before it came here, or ''. Reads configuration and modules."""
    config = denoiser.config.get("quantization_config")
    if config is not None:
        # diffusers keeps a dictionary in a saved file and an object in a loaded model.
        method = config.get("quant_method") if isinstance(config, dict) else config.quant_method
        return str(getattr(method, "value", method) or "unknown")
    if any(isinstance(module, (Int8Linear, WeightOnlyLinear)) for module in denoiser.modules()):
        return "native"
    packages = {type(m.weight).__module__.split(".")[0] for m in denoiser.modules() if isinstance(m, nn.Linear)}
    package = next((name for name in sorted(packages) if name not in ("torch", "diffusers")), "")
    return "quanto" if package == "optimum" else package


def fewest_bits(denoiser: nn.Module, otherwise: int) -> int:
    """Bits per weight of the linear with the fewest, from its storage: 4, 8 or `otherwise`."""
    bits = [found for module in denoiser.modules() if (found := _bits(module))]
    return min([*bits, otherwise])


def rounded_to(denoiser: nn.Module, otherwise: int) -> int:
    """Bits that linears of this project round their input to; where none does, those of the model's own dtype.

    At least 16 then: weights that diffusers' layerwise casting stores in fewer are cast before they are computed with,
    and inputs never are rounded. Other libraries' linears do not show what they round to.
    """
    return 8 if any(isinstance(module, Int8Linear) for module in denoiser.modules()) else max(16, otherwise)


def _bits(module: nn.Module) -> int:
    if isinstance(module, Int8Linear):
        return 8
    if isinstance(module, WeightOnlyLinear):
        return module.scheme.weight_bits
    if not isinstance(module, nn.Linear) or not isinstance(module.weight, torch.Tensor):
        return 0
    stored = 8 * storage_bytes([module.weight]) / (module.in_features * module.out_features)
    return 4 if stored < 6 else 8 if stored < 12 else 0
