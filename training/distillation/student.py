"""The student: the teacher's denoiser with a LoRA, taken over a few long steps of the teacher's own schedule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from .trajectories import Trajectories

ADAPTER = "student"


@dataclass(frozen=True)
class Segments:
    """The few steps, as indices into the teacher's grid: 0 = n_0 < n_1 < ... < n_K = S."""

    nodes: tuple[int, ...]

    @classmethod
    def even(cls, steps: int, of: int) -> Segments:
        """`steps` steps that split the teacher's `of` steps as evenly as whole numbers allow."""
        return cls(tuple(round(i * of / steps) for i in range(steps + 1)))

    def __len__(self) -> int:
        return len(self.nodes) - 1


def add_lora(transformer: nn.Module, rank: int) -> list[nn.Parameter]:
    """Put a LoRA on every linear inside the blocks; only it is trained. Returns its parameters, in fp32."""
    blocks = [name for name, part in transformer.named_children() if isinstance(part, nn.ModuleList)]
    targets = [
        path
        for path, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and path.split(".")[0] in blocks
    ]
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=True, target_modules=targets)
    transformer.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]  # diffusers' PeftAdapterMixin
    return [p for p in transformer.parameters() if p.requires_grad]


def velocity(transformer: nn.Module, x: torch.Tensor, sigma: float, batch: Trajectories) -> torch.Tensor:
    """The student's velocity at a state x (B, ...) in fp32."""
    dtype = next(transformer.parameters()).dtype  # of an embedder, which has no LoRA
    timestep = torch.full((len(x),), sigma * batch.time_scale, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = transformer(hidden_states=x.to(dtype), timestep=timestep, return_dict=False, **batch.arguments)[0]
    return out.float()


def forced_loss(transformer: nn.Module, batch: Trajectories, segments: Segments, which: int) -> torch.Tensor:
    """Error of one long step from the teacher's own state, as what it leaves in the state: (delta sigma)^2 MSE(v).

    The target is the mean velocity of the segment, (x_end - x_start) / (sigma_end - sigma_start), which is all that a
    student of this many steps has to know (as in progressive distillation, Salimans & Ho 2022, with one jump).
    """
    start, end = segments.nodes[which], segments.nodes[which + 1]
    gap = batch.sigmas[end] - batch.sigmas[start]
    x, goal = batch.states[start].float(), batch.states[end].float()
    return (x + gap * velocity(transformer, x, batch.sigmas[start], batch) - goal).square().mean()


def unrolled_loss(transformer: nn.Module, batch: Trajectories, segments: Segments, inner: float) -> torch.Tensor:
    """Error of the finished picture after all long steps on the student's own states, backpropagated through them.

    Args:
        inner: weight of the errors at the inner nodes, which keep the path near the teacher's.
    """
    x, loss = batch.states[0].float(), torch.zeros(())
    for start, end in zip(segments.nodes, segments.nodes[1:], strict=False):
        gap = batch.sigmas[end] - batch.sigmas[start]
        x = x + gap * velocity(transformer, x, batch.sigmas[start], batch)
        weight = 1.0 if end == segments.nodes[-1] else inner
        loss = loss + weight * (x - batch.states[end].float()).square().mean()
    return loss


def save_lora(transformer: nn.Module, path: Path) -> None:
    """Write the LoRA in bf16 under diffusers' keys, with alpha = rank for every linear."""
    state: dict[str, Any] = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    out = {f"transformer.{key}": value.to(torch.bfloat16).contiguous() for key, value in state.items()}
    for key, value in state.items():
        if key.endswith("lora_A.weight"):
            out[f"transformer.{key.removesuffix('lora_A.weight')}alpha"] = torch.tensor(float(len(value)))
    save_file(out, path)
