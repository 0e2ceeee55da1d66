"""Small instances from the configurations of published models keep their flags, and get the arguments they need."""

from typing import Any

import diffusers
import pytest
import torch

from stack.models.small import Sizes, samples_of, small

SDXL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
WAN_I2V = {"added_kv_proj_dim": 5120, "image_dim": 1280, "in_channels": 36}
COSMOS_25 = {"use_crossattn_projection": True, "crossattn_proj_in_channels": 100352, "img_context_dim_in": 1152}
COGVIDEOX_15 = {"num_attention_heads": 48, "in_channels": 32, "patch_size_t": 2, "ofs_embed_dim": 512}
HUNYUAN_IMAGE = {"text_embed_2_dim": 1472, "guidance_embeds": True, "use_meanflow": True}

PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "FLUX.1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}, {"guidance": (1,), "img_ids": (24, 3)}),
    "FLUX.3 klein": ("Flux3Transformer2DModel", {"flow_map": True}, {"target_timestep": (1,)}),
    "Qwen-Image-Edit-2511": ("QwenImageTransformer2DModel", {"zero_cond_t": True}, {"hidden_states": (1, 24, 64)}),
    "Wan 2.1 I2V": ("WanTransformer3DModel", WAN_I2V, {"encoder_hidden_states_image": (1, 3, 40)}),
    "Wan 2.1 FLF2V": (
        "WanTransformer3DModel", {**WAN_I2V, "pos_embed_seq_len": 514}, {"encoder_hidden_states_image": (2, 257, 40)}
    ),
    "CogVideoX-2b": (
        "CogVideoXTransformer3DModel",
        {"use_rotary_positional_embeddings": False},
        {"encoder_hidden_states": (1, 226, 40)},
    ),
    "CogVideoX1.5-5B-I2V": (
        "CogVideoXTransformer3DModel", COGVIDEOX_15, {"ofs": (1,), "hidden_states": (1, 6, 32, 8, 12)}
    ),
    "HunyuanImage-2.1": ("HunyuanImageTransformer2DModel", HUNYUAN_IMAGE, {"timestep_r": (1,), "guidance": (1,)}),
    "Sana-Sprint": ("SanaTransformer2DModel", {"guidance_embeds": True}, {"guidance": (1,)}),
    "PixArt-Sigma": (
        "PixArtTransformer2DModel", {"use_additional_conditions": False}, {"hidden_states": (1, 4, 8, 12)}
    ),
    "DiT-XL-2-256": (
        "DiTTransformer2DModel", {"out_channels": 8}, {"hidden_states": (1, 4, 8, 8), "class_labels": (1,)}
    ),
    "SDXL": ("UNet2DConditionModel", SDXL, {"sample": (1, 4, 4, 6), "encoder_hidden_states": (1, 5, 40)}),
    "Cosmos-Predict2.5": ("CosmosTransformer3DModel", COSMOS_25, {"hidden_states": (1, 16, 3, 8, 12)}),
}  # fmt: skip
"""Model to its class, what its configuration sets apart from the class's defaults, and shapes of a call's arguments."""


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_configuration_is_kept_and_called(model: str) -> None:
    name, config, shapes = PUBLISHED[model]
    given = small(getattr(diffusers, name), config)
    flags = {key: value for key, value in config.items() if isinstance(value, bool | str)}
    assert {key: given.denoiser.config[key] for key in flags} == flags
    call = given.call(Sizes())
    assert {key: tuple(call[key].shape) for key in shapes} == shapes
    assert given.batches, given.reason
    assert all(torch.isfinite(answer).all() for answer in samples_of(given.denoiser, call)[0])


def test_sdxl_gets_its_pooled_text_and_its_sizes() -> None:
    conditions = small(diffusers.UNet2DConditionModel, SDXL).call(Sizes(batch=2))["added_cond_kwargs"]
    assert {key: tuple(value.shape) for key, value in conditions.items()} == {
        "text_embeds": (2, 1280),
        "time_ids": (2, 6),
    }
    assert "added_cond_kwargs" not in small(diffusers.UNet2DConditionModel).call(Sizes())
