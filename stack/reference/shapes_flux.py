"""The reference model `shapes-flux`: sizes, schedule and training stages, as data."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from .prompt import PromptEncoder

# 5.1 M parameters. Two double and four single blocks, 192 wide, 3 heads of 64: at 1,024 image tokens the linears and
# the attention of the blocks are nearly all of the work, as in large models.
TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 12,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 3,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 128,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 24, 24),
}
PROMPT = {"width": 64, "pooled": 128}
# FLUX's shifted schedule: mu grows linearly with the number of image tokens (0 at 64, 1.1 at 1,024: shift 1 to 3).
SCHEDULE = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 64,
    "max_image_seq_len": 1024,
    "base_shift": 0.0,
    "max_shift": 1.1,
}


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
        size: canvas in pixels.
        batch: pictures per update.
        samples: pictures in all.
        lr: peak learning rate.
        crop: side in pixels of the part of the canvas that is trained on; 0 is all of it. Tokens keep their positions
            and the noise of the whole canvas, so a crop teaches fine detail at a fraction of the cost.
    """

    size: int
    batch: int
    samples: int
    lr: float
    crop: int = 0

    @property
    def tokens(self) -> int:
        """Image tokens of the whole canvas, one per 2 x 2 pixels."""
        return (self.size // 2) ** 2


STAGES = (
    Stage(size=16, batch=32, samples=36_000, lr=1e-3),
    Stage(size=32, batch=8, samples=12_700, lr=7e-4),
    Stage(size=64, batch=8, samples=6_000, lr=6e-4, crop=32),
    Stage(size=64, batch=4, samples=1_200, lr=4e-4),
)


def new_transformer() -> FluxTransformer2DModel:
    """An untrained denoiser of the reference size."""
    return FluxTransformer2DModel(**TRANSFORMER)


def new_prompt_encoder() -> PromptEncoder:
    """An untrained prompt encoder of the reference size."""
    return PromptEncoder(**PROMPT)


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The schedule the model is trained for."""
    return FlowMatchEulerDiscreteScheduler(**SCHEDULE)
