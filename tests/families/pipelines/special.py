"""Small pipelines with more in a call than noise and text: clean frames, pictures, sound, K/V caches; modular ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLWan, UniPCMultistepScheduler
from PIL import Image

from .build import DYNAMIC, SQUARE, TOKENS, Whole, assembled, denoiser, draw, flow, text, texts


def picture(side: int = 64) -> Image.Image:
    return Image.fromarray((np.random.default_rng(0).random((side, side, 3)) * 255).astype("uint8"))


def wan_vae(channels: int = 16) -> AutoencoderKLWan:
    """A third of a second to build; sides are an eighth, frames a quarter."""
    torch.manual_seed(3)
    return AutoencoderKLWan(base_dim=3, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def flux2_vae(channels: int = 32) -> AutoencoderKLFlux2:
    torch.manual_seed(3)
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=channels, norm_num_groups=2,
        sample_size=16,
    ).eval()  # fmt: skip


def _klein(name: str, **given: Any) -> Whole:
    transformer = denoiser("Flux2Transformer2DModel", guidance_embeds=False)
    pipe = assembled(name, transformer=transformer, scheduler=flow(**DYNAMIC), vae=flux2_vae())
    return Whole(pipe, {**SQUARE, "prompt_embeds": text(40), **given})


def klein() -> Whole:
    return _klein("Flux2KleinPipeline", negative_prompt_embeds=text(40, seed=3))


def klein_edit() -> Whole:
    """A picture lies behind the noise in the sequence."""
    return _klein("Flux2KleinPipeline", negative_prompt_embeds=text(40, seed=3), image=[picture()])


def klein_kv() -> Whole:
    """The first step is longer: it takes the picture in, whose keys and values later steps are given."""
    return _klein("Flux2KleinKVPipeline", image=[picture()])


def qwen_edit_plus() -> Whole:
    torch.manual_seed(3)
    vae = AutoencoderKLQwenImage(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    transformer = denoiser("QwenImageTransformer2DModel")
    pipe = assembled("QwenImageEditPlusPipeline", transformer=transformer, scheduler=flow(**DYNAMIC), vae=vae)
    given = texts(40, "prompt_embeds_mask", negative_tokens=TOKENS + 2)
    whole = Whole(pipe, {**SQUARE, **given, "true_cfg_scale": 3.0, "image": [picture()]})
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"
    whole.patched = tuple((f"{module}.{name}", 64 * 64) for name in ("CONDITION_IMAGE_SIZE", "VAE_IMAGE_SIZE"))
    return whole


def ideogram4() -> Whole:
    """What has no text in it is another denoiser's, which sees the picture's tokens only."""
    pipe = assembled(
        "Ideogram4Pipeline", transformer=denoiser("Ideogram4Transformer2DModel"), scheduler=flow(shift=1.0),
        unconditional_transformer=denoiser("Ideogram4Transformer2DModel", seed=1),
    )  # fmt: skip

    def encode_prompt(prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: Any) -> tuple[Any, ...]:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        ids = pipe._prepare_ids([TOKENS] * len(prompts), grid_h, grid_w, max_sequence_length, device)
        features = torch.zeros(len(prompts), max_sequence_length + grid_h * grid_w, 40)
        for row, asked in zip(features, prompts, strict=True):
            row[max_sequence_length - TOKENS : max_sequence_length] = draw(TOKENS, 40, seed=2 if asked == "one" else 3)
        return features, *ids

    pipe.encode_prompt = encode_prompt
    given = {"prompt": "one", "max_sequence_length": TOKENS + 3, "guidance_scale": 3.0, "guidance_schedule": None}
    return Whole(pipe, {**SQUARE, **given}, ("transformer", "unconditional_transformer"))


class PromptTokens:
    """In the place of a tokenizer: every prompt is the same few tokens, as embeddings are given."""

    tokenizer = SimpleNamespace(encode=lambda word: [0])

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[0]]


def qwen21() -> Whole:
    """The first step takes in the text, whose keys and values later steps are given."""
    pipe = assembled(
        "QwenImage21Pipeline", transformer=denoiser("QwenImage21Transformer2DModel"), scheduler=flow(**DYNAMIC),
        processor=PromptTokens(),
    )  # fmt: skip

    def encode_prompt(prompt: Any = None, prompt_embeds: Any = None, **_: Any) -> tuple[Any, ...]:
        return prompt_embeds, None, torch.zeros(1, prompt_embeds.shape[1], dtype=torch.bool)

    pipe.encode_prompt = encode_prompt
    return Whole(pipe, {**SQUARE, **texts(32), "true_cfg_scale": 3.0})


def wan_from_a_picture() -> Whole:
    """Wan 2.2's small model: tokens of the first frame are at time 0, all others at the step's."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = assembled(
        "WanImageToVideoPipeline", transformer=denoiser("WanTransformer3DModel"), scheduler=scheduler, vae=wan_vae(),
        expand_timesteps=True,
    )  # fmt: skip
    return Whole(pipe, {"height": 32, "width": 32, "num_frames": 5, **texts(40), "image": picture(32)})


class Stub(torch.nn.Module):
    """Stands for a model of a pipeline."""

    device, dtype = torch.device("cpu"), torch.float32


class Connectors(Stub):
    """The encoders between LTX-2's text and its two streams."""

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor, padding_side: str = "left") -> tuple[Any, ...]:
        return embeds, embeds, mask


class Scales(Stub):
    """A VAE whose latents are as they are."""

    def __init__(self, **config: Any):
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.latents_mean = torch.nn.Parameter(torch.zeros(128), requires_grad=False)
        self.latents_std = torch.nn.Parameter(torch.ones(128), requires_grad=False)
        self.mel_compression_ratio = self.temporal_compression_ratio = 4


def ltx2() -> Whole:
    """Video and audio from one call."""
    pipe = assembled("LTX2Pipeline", transformer=denoiser("LTX2VideoTransformer3DModel"), scheduler=flow(**DYNAMIC))
    pipe.connectors = Connectors()
    pipe.audio_vae, pipe.vae = Scales(mel_bins=64, latent_channels=8), Scales(scaling_factor=1.0)
    given = texts(40, "prompt_attention_mask")
    return Whole(pipe, {"height": 64, "width": 64, "num_frames": 9, **given, "stg_scale": 0.0, "audio_stg_scale": 0.0})


def modular_flux() -> Whole:
    from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxCoreDenoiseStep

    pipe = diffusers.FluxModularPipeline(blocks=FluxCoreDenoiseStep())
    pipe.update_components(transformer=denoiser("FluxTransformer2DModel"), scheduler=flow())
    return Whole(pipe, {**SQUARE, "prompt_embeds": text(40), "pooled_prompt_embeds": draw(1, 28)}, made="latents")


def modular_qwen() -> Whole:
    """A guider makes the calls of the two branches."""
    from diffusers.modular_pipelines.qwenimage.modular_blocks_qwenimage import QwenImageCoreDenoiseStep

    pipe = diffusers.QwenImageModularPipeline(blocks=QwenImageCoreDenoiseStep())
    pipe.update_components(transformer=denoiser("QwenImageTransformer2DModel"), scheduler=flow(**DYNAMIC))
    given = texts(40, "prompt_embeds_mask")
    return Whole(pipe, {**SQUARE, **given}, made="latents")


def modular_flux3() -> Whole:
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3CoreDenoiseStep

    pipe = diffusers.Flux3ModularPipeline(blocks=Flux3CoreDenoiseStep())
    pipe.update_components(transformer=denoiser("Flux3Transformer2DModel"), scheduler=flow())
    return Whole(pipe, {**SQUARE, **texts(40)}, made="latents")


def minimax_h3() -> Whole:
    """Video and sound in one sequence, each with a scheduler of its own."""
    from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import MiniMaxH3CoreDenoiseStep

    pipe = diffusers.MiniMaxH3ModularPipeline(blocks=MiniMaxH3CoreDenoiseStep())
    schedulers = {name: diffusers.MiniMaxH3Scheduler() for name in ("scheduler", "audio_scheduler")}
    pipe.update_components(transformer=denoiser("MiniMaxH3Transformer3DModel"), **schedulers)
    tags = torch.ones(TOKENS, dtype=torch.long)
    given = {
        "prompt_embeds": draw(1, TOKENS, 40),
        "text_token_tags": tags,
        "height": 64,
        "width": 64,
        "num_frames": 120,
    }
    return Whole(pipe, given, made="latents")


def modular_wan22() -> Whole:
    from diffusers.modular_pipelines.wan.modular_blocks_wan22 import Wan22CoreDenoiseStep

    pipe = diffusers.Wan22ModularPipeline(blocks=Wan22CoreDenoiseStep())
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe.update_components(
        transformer=denoiser("WanTransformer3DModel"), transformer_2=denoiser("WanTransformer3DModel", seed=1),
        scheduler=scheduler, boundary_ratio=0.7,
    )  # fmt: skip
    given = {"height": 32, "width": 32, "num_frames": 5, **texts(40)}
    return Whole(pipe, given, ("transformer", "transformer_2"), made="latents")


SPECIAL: dict[str, Callable[[], Whole]] = {
    "Flux2KleinPipeline": klein,
    "Flux2KleinPipeline, with a picture": klein_edit,
    "Flux2KleinKVPipeline": klein_kv,
    "QwenImageEditPlusPipeline": qwen_edit_plus,
    "QwenImage21Pipeline": qwen21,
    "Ideogram4Pipeline": ideogram4,
    "WanImageToVideoPipeline, per-token times": wan_from_a_picture,
    "LTX2Pipeline": ltx2,
    "FluxModularPipeline": modular_flux,
    "QwenImageModularPipeline": modular_qwen,
    "Wan22ModularPipeline": modular_wan22,
    "Flux3ModularPipeline": modular_flux3,
    "MiniMaxH3ModularPipeline": minimax_h3,
}
