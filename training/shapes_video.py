"""The untrained model `shapes-video`: its sizes and its schedule."""

from __future__ import annotations

import math

from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

from stack.reference.clips import FRAMES
from stack.reference.prompt import VIDEOS, PromptEncoder

SIZE, PATCH = 32, 2  # pixels; of a canvas, and of a patch's side in space and time
# 5.3 M parameters. As wide as shapes-flux and shapes-dit, so that a figure for one can be held against the others.
TRANSFORMER = {
    "in_channels": 3,
    "out_channels": 3,
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "num_layers": 2,
    "num_single_layers": 4,
    "num_refiner_layers": 1,
    "mlp_ratio": 3.0,
    "patch_size": PATCH,
    "patch_size_t": PATCH,
    "guidance_embeds": False,
    "text_embed_dim": 64,
    "pooled_projection_dim": 128,
    # Positions go to 16 here, not to a hundred: the slowest of the rotations still turns by a third over the canvas.
    "rope_theta": 64.0,
    "rope_axes_dim": (16, 24, 24),
}
PROMPT = {"width": 64, "pooled": 128, "vocabulary": len(VIDEOS.words), "length": VIDEOS.length}
SHIFT = 3.0  # of the schedule, at the 1,024 tokens of whole clips


def shift_at(tokens: int) -> float:
    """The schedule's shift for a number of video tokens: 3 at 1,024, and as the square root of them (Esser 2024)."""
    return SHIFT * math.sqrt(tokens / (FRAMES // PATCH * (SIZE // PATCH) ** 2))


def new_transformer() -> HunyuanVideoTransformer3DModel:
    """An untrained denoiser of the reference size."""
    return HunyuanVideoTransformer3DModel(**TRANSFORMER)


def new_prompt_encoder() -> PromptEncoder:
    """An untrained prompt encoder of the reference size."""
    return PromptEncoder(**PROMPT)


def new_scheduler(shift: float = SHIFT) -> FlowMatchEulerDiscreteScheduler:
    """The schedule the model is trained for."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)
