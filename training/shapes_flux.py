"""The untrained model `shapes-flux`: its sizes. Its schedule ships, in `stack.reference.shapes_flux`."""

from __future__ import annotations

from diffusers import FluxTransformer2DModel

from stack.reference.prompt import PromptEncoder

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


def new_transformer() -> FluxTransformer2DModel:
    """An untrained denoiser of the reference size."""
    return FluxTransformer2DModel(**TRANSFORMER)


def new_prompt_encoder() -> PromptEncoder:
    """An untrained prompt encoder of the reference size."""
    return PromptEncoder(**PROMPT)
