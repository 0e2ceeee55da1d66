"""U-Nets: SDXL's sizes and pooled text, and the conditions of the video ones."""

import torch

from ..examples.call import Call, Rule, filled, level, noise
from .base import FamilyData


def _sdxl(name: str, call: Call) -> dict[str, torch.Tensor] | None:
    """Pooled text and six sizes, where the configuration asks for them."""
    if call.config.get("addition_embed_type") != "text_time":
        return None
    width = call.size("projection_class_embeddings_input_dim") - 6 * call.size("addition_time_embed_dim")
    return {"text_embeds": noise(f"B {width}")(name, call), "time_ids": torch.full((call.sizes.batch, 6), 64.0)}


def _text_per_frame(name: str, call: Call) -> torch.Tensor:
    """(B * F, T, width): each sample's text for each of its frames."""
    rule: Rule = noise("B T cross_attention_dim")
    return rule(name, call).repeat_interleave(call.frames, dim=0)


UNET = FamilyData(("UNet2DConditionModel",), arguments={"added_cond_kwargs": _sdxl})
UNET_FRAMES = FamilyData(
    ("UNetSpatioTemporalConditionModel",), video=True,
    arguments={"sample": noise("B F C H W"), "added_time_ids": filled("B 3", 6.0)},
)  # fmt: skip
UNET_VIDEO = FamilyData(
    ("I2VGenXLUNet", "UNet3DConditionModel"), video=True,
    arguments={
        "sample": noise("B C F H W"), "fps": filled("B", 8.0), "image_latents": noise("B C F H W"),
        "image_embeddings": noise("B cross_attention_dim"),
    },
)  # fmt: skip
UNET_MOTION = FamilyData(
    ("UNetMotionModel",), video=True, arguments={"sample": noise("B C F H W"), "encoder_hidden_states": _text_per_frame}
)
UNET_1D = FamilyData(("UNet1DModel",), config={"extra_in_channels": 64})
CASCADE = FamilyData(
    ("StableCascadeUNet",), time_scale=1.0,
    config={"num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1)},
    arguments={"timestep_ratio": level, "clip_text_pooled": noise("B 1 clip_text_pooled_in_channels")},
)  # fmt: skip
