"""Small pipelines of diffusers with random weights and all their parts, so that they can be saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from ..pipelines.build import DYNAMIC, assembled, denoiser, flow

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "ring", "left", "of", "blue", "star", "on", "white", "background"]
LENGTH = 16  # of a prompt in tokens
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
WIDTH = 40  # of text features, as small denoisers take them


@dataclass(frozen=True)
class Saved:
    """A pipeline and what a command line has to say beside its folder.

    Attributes:
        size: width and height in pixels.
        frames: of a video; 0 for pictures.
        cache: of `CACHES` in the test.
    """

    make: Callable[[], Any]
    size: str = "64x64"
    frames: int = 0
    cache: str = "blocks"


def tokenizer() -> Any:
    """Whole words of a tiny vocabulary, with an end mark."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<unk>",
        model_max_length=LENGTH, chat_template=CHAT,
    )  # fmt: skip


def _seeded(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(3)
    return make(*args, **kwargs).eval()


def t5(kind: str = "T5", width: int = WIDTH) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return _seeded(getattr(transformers, f"{kind}EncoderModel"), config)


def clip(width: int, projection: int = 0) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=projection or width, max_position_embeddings=LENGTH, bos_token_id=2, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    return _seeded(transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel, config)


def decoder(kind: str) -> Any:
    """A language model of this kind as a text encoder."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return _seeded(getattr(transformers, f"{kind}Model"), config)


def vae(latent: int) -> Any:
    """An eighth of each side."""
    return _seeded(
        diffusers.AutoencoderKL, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=latent, norm_num_groups=2, sample_size=64,
        shift_factor=0.1, scaling_factor=0.4,
    )  # fmt: skip


def sd3() -> Any:
    return assembled(
        "StableDiffusion3Pipeline", transformer=denoiser("SD3Transformer2DModel", sample_size=8), scheduler=flow(),
        vae=vae(16), text_encoder=clip(16, 12), text_encoder_2=clip(24, 16), text_encoder_3=t5(),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(), tokenizer_3=tokenizer(),
    )  # fmt: skip


def flux() -> Any:
    transformer = denoiser("FluxTransformer2DModel")
    known = transformer.config
    return assembled(
        "FluxPipeline", transformer=transformer, scheduler=flow(**DYNAMIC), vae=vae(known.in_channels // 4),
        text_encoder=clip(known.pooled_projection_dim), text_encoder_2=t5(width=known.joint_attention_dim),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(),
    )  # fmt: skip


def pixart() -> Any:
    return assembled(
        "PixArtSigmaPipeline", transformer=denoiser("PixArtTransformer2DModel", sample_size=32),
        scheduler=diffusers.DPMSolverMultistepScheduler(), vae=vae(4), text_encoder=t5(), tokenizer=tokenizer(),
    )  # fmt: skip


def wan() -> Any:
    small = _seeded(
        diffusers.AutoencoderKLWan, base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    return assembled(
        "WanPipeline", transformer=denoiser("WanTransformer3DModel"), vae=small, text_encoder=t5("UMT5"),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        tokenizer=tokenizer(),
    )  # fmt: skip


def ltx() -> Any:
    small = _seeded(
        diffusers.AutoencoderKLLTXVideo, latent_channels=128, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return assembled(
        "LTXPipeline", transformer=denoiser("LTXVideoTransformer3DModel"), scheduler=flow(**DYNAMIC), vae=small,
        text_encoder=t5(), tokenizer=tokenizer(),
    )  # fmt: skip


def cogvideox() -> Any:
    small = _seeded(
        diffusers.AutoencoderKLCogVideoX, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=2, latent_channels=16,
    )  # fmt: skip
    return assembled(
        "CogVideoXPipeline", transformer=denoiser("CogVideoXTransformer3DModel"), vae=small, text_encoder=t5(),
        scheduler=diffusers.CogVideoXDDIMScheduler(), tokenizer=tokenizer(),
    )  # fmt: skip


def mochi() -> Any:
    small = _seeded(
        diffusers.AutoencoderKLMochi, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return assembled(
        "MochiPipeline", transformer=denoiser("MochiTransformer3DModel"), vae=small, text_encoder=t5(),
        scheduler=flow(shift=1.0, invert_sigmas=True), tokenizer=tokenizer(),
    )  # fmt: skip


def sana() -> Any:
    stages = ("ResBlock",) * 5 + ("EfficientViTBlock",)
    multiscales = ((),) * 5 + ((5,),)
    small = _seeded(
        diffusers.AutoencoderDC, latent_channels=32, attention_head_dim=2, encoder_block_types=stages,
        decoder_block_types=stages, encoder_block_out_channels=(8, 8, 8, 8, 8, 32),
        decoder_block_out_channels=(8, 8, 8, 8, 8, 32),
        encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6, encoder_qkv_multiscales=multiscales,
        decoder_qkv_multiscales=multiscales,
    )  # fmt: skip
    return assembled(
        "SanaPipeline", transformer=denoiser("SanaTransformer2DModel", sample_size=16), vae=small,
        text_encoder=decoder("Gemma2"), tokenizer=tokenizer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )  # fmt: skip


def z_image() -> Any:
    return assembled(
        "ZImagePipeline", transformer=denoiser("ZImageTransformer2DModel"), scheduler=flow(**DYNAMIC), vae=vae(16),
        text_encoder=decoder("Qwen3"), tokenizer=tokenizer(),
    )  # fmt: skip


def cogview4() -> Any:
    return assembled(
        "CogView4Pipeline", transformer=denoiser("CogView4Transformer2DModel"), scheduler=flow(**DYNAMIC), vae=vae(16),
        text_encoder=decoder("Glm"), tokenizer=tokenizer(),
    )  # fmt: skip


def sdxl() -> Any:
    unet = denoiser(
        "UNet2DConditionModel", addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8, sample_size=8,
    )  # fmt: skip
    return assembled(
        "StableDiffusionXLPipeline", unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), vae=vae(4),
        text_encoder=clip(16), text_encoder_2=clip(24, 16), tokenizer=tokenizer(), tokenizer_2=tokenizer(),
    )  # fmt: skip


def sd() -> Any:
    """Its scheduler is the one that Stable Diffusion 1.5 is saved with."""
    return assembled(
        "StableDiffusionPipeline", unet=denoiser("UNet2DConditionModel", sample_size=8), vae=vae(4),
        text_encoder=clip(40), tokenizer=tokenizer(), requires_safety_checker=False,
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
    )  # fmt: skip


SAVED = {
    "Flux": Saved(flux),
    "StableDiffusion3": Saved(sd3),
    "PixArtSigma": Saved(pixart),
    "Wan": Saved(wan, "32x32", 5),
    "LTX": Saved(ltx, "64x64", 9),
    "CogVideoX": Saved(cogvideox, "64x64", 5),
    "Mochi": Saved(mochi, "32x32", 7),
    "Sana": Saved(sana),
    "ZImage": Saved(z_image),
    "CogView4": Saved(cogview4),
    "StableDiffusionXL": Saved(sdxl, cache="whole"),
    "StableDiffusion": Saved(sd, cache="whole"),
}
