"""How diffusers' families are wired: three written by hand, every other derived from its class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusers import ModelMixin

from ..core.errors import StackError
from .derive.derive import derived
from .derive.grid import Positions
from .layout import Along, CachedModule, SelfAttention, Wiring
from .modulated import UpToAttention

__all__ = ["DIT", "FAMILIES", "FLUX", "HUNYUAN_VIDEO", "Along", "CachedModule", "Wiring", "wiring_of"]


def _flux_tokens(pipe: Any, config: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    """One image token per 2 x 2 latent pixels."""
    if pipe is None:
        return (), 0
    side = pipe.default_sample_size // 2
    return (side, side), _asked(pipe, "max_sequence_length")


def _asked(pipe: Any, name: str) -> int:
    """What an argument of a pipeline's call is by default; 0 where it has none of this name."""
    # A subclass may hand it on unnamed: its parent names it.
    calls = (vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind))
    found = (parameter for call in calls if (parameter := inspect.signature(call).parameters.get(name)))
    return next((p.default for p in found if isinstance(p.default, int)), 0)


FLUX = Wiring(
    family="flux",
    classes=("FluxTransformer2DModel",),
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    streams={"text": "encoder_hidden_states", "image": "hidden_states"},
    output_stream="image",
    linears={
        "attention": ("attn.to_[qkv]", "attn.to_out.0", "attn.add_[qkv]_proj", "attn.to_add_out"),
        "mlp": ("ff.net.*", "ff_context.net.*", "proj_mlp", "proj_out"),
    },
    sensitive={
        "time and guidance embedding": ("time_text_embed.*",),
        "modulation": ("*transformer_blocks.*.norm*.linear",),
        "input projection": ("x_embedder", "context_embedder"),
        "output projection": ("norm_out.linear", "proj_out"),
    },
    modules={
        "transformer_blocks": (
            CachedModule("attn", "attention", norms=("norm1", "norm1_context")),
            CachedModule("ff", "mlp", norms=("norm2",), values="attn.to_v"),
            CachedModule("ff_context", "mlp", norms=("norm2_context",), values="attn.add_v_proj"),
        ),
        "single_transformer_blocks": (
            CachedModule("proj_out", "both", spares=("attn", "proj_mlp"), norms=("norm",), values="attn.to_v"),
            CachedModule("attn", "attention"),
        ),
    },
    modulation=UpToAttention("attn", "hidden_states"),
    tokens=_flux_tokens,
    grid=Positions("img_ids"),
    inputs=("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance"),
    residuals=("controlnet_block_samples", "controlnet_single_block_samples"),
    constants=("pos_embed",),
    makers=("x_embedder",),
    unread=("context_embedder", "pos_embed"),
    along={"image_rotary_emb": Along(("text", "image"))},
    same_input=(("attn.to_[qkv]", "proj_mlp"), ("attn.add_[qkv]_proj",)),
    attention=dict.fromkeys(("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"), SelfAttention("before")),
)


def _dit_tokens(pipe: Any, config: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    side = config["sample_size"] // config["patch_size"]
    return (side, side), 0


def _patches(denoiser: Any, given: Mapping[str, Any]) -> tuple[int, ...]:
    """One token per patch of a latent (B, C, H, W) or (B, C, F, H, W)."""
    latent, patch = given["hidden_states"], denoiser.config["patch_size"]
    rows, columns = (side // patch for side in latent.shape[-2:])
    frames = [count // denoiser.config["patch_size_t"] for count in latent.shape[2:-2]]
    return (*frames, rows, columns)


DIT = Wiring(
    family="dit",
    classes=("DiTTransformer2DModel",),
    block_lists=("transformer_blocks",),
    streams={"image": "hidden_states"},
    output_stream="image",
    linears={"attention": ("attn1.to_[qkv]", "attn1.to_out.0"), "mlp": ("ff.net.*",)},
    sensitive={
        "time and guidance embedding": ("transformer_blocks.*.norm1.emb.*",),
        "modulation": ("transformer_blocks.*.norm1.linear",),
        "output projection": ("proj_out_1", "proj_out_2"),
    },
    modules={
        "transformer_blocks": (
            CachedModule("attn1", "attention", norms=("norm1",)),
            CachedModule("ff", "mlp", norms=("norm3",), values="attn1.to_v"),
        )
    },
    flow=False,
    halves=True,
    modulation=UpToAttention("attn1", "hidden_states"),
    tokens=_dit_tokens,
    grid=_patches,
    inputs=("hidden_states", "timestep", "class_labels"),
    makers=("pos_embed",),
    batched=("timestep", "class_labels"),
    attention={"transformer_blocks.*.attn1": SelfAttention()},
    timestep_scale=1000.0,
)


def _video_tokens(pipe: Any, config: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    """One token per patch of latents in space and time; a pipeline over pixels has its size in its configuration."""
    if pipe is None:
        return (), 0
    arguments = {"frames": "num_frames", "size": "height"}
    frames, height = (pipe.config.get(own) or _asked(pipe, name) for own, name in arguments.items())
    width = pipe.config.get("size") or _asked(pipe, "width")
    latents = (frames - 1) // pipe.vae_scale_factor_temporal + 1
    patch = pipe.vae_scale_factor_spatial * config["patch_size"]
    grid = (latents // config["patch_size_t"], height // patch, width // patch)
    return grid, _asked(pipe, "max_sequence_length")


# FLUX's blocks, but that the text comes last, has no positions, and may be masked.
HUNYUAN_VIDEO = replace(
    FLUX,
    family="hunyuan-video",
    classes=("HunyuanVideoTransformer3DModel",),
    streams={"video": "hidden_states", "text": "encoder_hidden_states"},
    output_stream="video",
    sensitive={
        "time and guidance embedding": ("time_text_embed.*", "context_embedder.time_text_embed.*"),
        "refiner": ("context_embedder.token_refiner.*",),
        "modulation": FLUX.sensitive["modulation"],
        "input projection": ("x_embedder.*", "context_embedder.proj_in"),
        "output projection": ("norm_out.linear", "proj_out"),
    },
    tokens=_video_tokens,
    grid=_patches,
    inputs=(*FLUX.inputs, "encoder_attention_mask"),
    residuals=(),
    batched=("temb", "attention_mask"),
    unread=("context_embedder", "rope"),
    constants=("rope",),
    along={
        "freqs_cis": Along(("video",)),
        "image_rotary_emb": Along(("video",)),
        "attention_mask": Along(("video", "text"), axis=-1),
    },
    # Its single blocks put the tokens together anew for the attention, behind the back of `proj_mlp`.
    same_input=(("attn.to_[qkv]",), ("attn.add_[qkv]_proj",)),
    attention=dict.fromkeys(FLUX.attention, SelfAttention("behind", hides_text=True, steady=True)),
    # With an image as condition, some or all tokens of the first frame have a modulation of their own.
    only={"image_condition_type": None},
    timestep_scale=1000.0,
)

FAMILIES: dict[str, Wiring] = {wiring.family: wiring for wiring in (FLUX, DIT, HUNYUAN_VIDEO)}


def wiring_of(denoiser: Any) -> Wiring:
    """The wiring of a model: written by hand where a family is and its configuration fits, else derived.

    Raises:
        StackError: no model of diffusers, or none whose forward takes a latent and its time.
    """
    name = type(denoiser).__name__
    for wiring in FAMILIES.values():
        if name in wiring.classes and all(denoiser.config.get(n) == wanted for n, wanted in wiring.only.items()):
            return wiring
    if not isinstance(denoiser, ModelMixin):
        raise StackError(f"cannot accelerate a {name}: expected a denoiser of diffusers, or a pipeline with one")
    return derived(denoiser)
