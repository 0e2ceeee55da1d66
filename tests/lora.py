"""A LoRA of the kind people publish, made here and saved locally."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TARGETS = ("attn.to_q", "attn.to_v", "proj_mlp")


def save_lora(
    denoiser: Any,
    folder: Path,
    rank: int = 4,
    prefix: str = "transformer.",
    name: str = "pytorch_lora_weights",
    alpha: float | None = None,
    seed: int = 11,
    targets: tuple[str, ...] = TARGETS,
) -> dict[str, torch.Tensor]:
    """Write a random LoRA for the attention and MLP linears; returns the weight updates it stands for, by linear."""
    generator = torch.Generator().manual_seed(seed)
    state, updates = {}, {}
    for path, module in denoiser.named_modules():
        if isinstance(module, torch.nn.Linear) and path.endswith(targets):
            down = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            up = torch.randn(module.out_features, rank, generator=generator) * 0.1
            state[f"{prefix}{path}.lora_A.weight"], state[f"{prefix}{path}.lora_B.weight"] = down, up
            if alpha is not None:
                state[f"{prefix}{path}.alpha"] = torch.tensor(alpha)
            updates[path] = up @ down * (1.0 if alpha is None else alpha / rank)
    save_file(state, folder / f"{name}.safetensors")
    return updates
