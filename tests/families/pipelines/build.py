"""Small pipelines of diffusers with random weights: diffusers' own classes over small denoisers, without encoders."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from stack.models.small import small

STEPS = 8
TOKENS = 5  # of a prompt


@dataclass
class Whole:
    """A pipeline and how it is called.

    Attributes:
        given: arguments of a call with guidance, without the generator and the number of steps.
        denoisers: names of the components that denoise.
        made: what a modular pipeline is asked for.
        patched: constants of diffusers' modules that would make it large, with other values.
    """

    pipe: Any
    given: dict[str, Any]
    denoisers: tuple[str, ...] = ("transformer",)
    made: str = ""
    patched: tuple[tuple[str, Any], ...] = ()

    def call(self, run: Any = None, seed: int = 7, **more: Any) -> torch.Tensor:
        """The latents that `run`, the pipeline or a stack over it, makes from a fixed seed."""
        generator = torch.Generator().manual_seed(seed)
        given = {**self.given, "num_inference_steps": STEPS, "generator": generator, **more}
        torch.manual_seed(5)  # some schedulers draw without the pipeline's generator
        with ExitStack() as patches:
            for name, value in self.patched:
                patches.enter_context(mock.patch(name, value))
            if self.made:
                return (run or self.pipe)(**given, output=self.made)
            return (run or self.pipe)(**given, output_type="latent", return_dict=False)[0]


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoiser(name: str, seed: int = 0, **config: Any) -> Any:
    """A small instance of this class; instances of other seeds have other weights."""
    made = small(getattr(diffusers, name), config).denoiser
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters() if seed else ():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


def assembled(name: str, **parts: Any) -> Any:
    """A pipeline of this class, of these components; the others are None."""
    cls = getattr(diffusers, name)
    needed = list(inspect.signature(cls.__init__).parameters.values())[1:]
    empty = {p.name: None for p in needed if p.default is p.empty}
    pipe = cls(**{**empty, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flow(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config})


DYNAMIC = {"use_dynamic_shifting": True, "shift": 1.0}
SQUARE = {"height": 64, "width": 64}


def text(width: int, *, seed: int = 2, tokens: int = TOKENS) -> torch.Tensor:
    return draw(1, tokens, width, seed=seed)


def texts(width: int, mask: str = "", dtype: torch.dtype = torch.long, negative_tokens: int = TOKENS) -> dict[str, Any]:
    """A prompt and its negative; with masks under this name where it has one."""
    given = {"prompt_embeds": text(width), "negative_prompt_embeds": text(width, seed=3, tokens=negative_tokens)}
    if mask:
        given[mask] = torch.ones(1, TOKENS, dtype=dtype)
        given[f"negative_{mask}"] = torch.ones(1, negative_tokens, dtype=dtype)
    return given


def z_image() -> Whole:
    """Both guidance branches in one call, as lists."""
    pipe = assembled("ZImagePipeline", transformer=denoiser("ZImageTransformer2DModel"), scheduler=flow(**DYNAMIC))
    given = {"prompt_embeds": [draw(TOKENS, 40)], "negative_prompt_embeds": [draw(TOKENS, 40, seed=3)]}
    return Whole(pipe, {**SQUARE, **given, "guidance_scale": 4.0})


def flux(**given: Any) -> Whole:
    pipe = assembled("FluxPipeline", transformer=denoiser("FluxTransformer2DModel"), scheduler=flow())
    pooled = {"pooled_prompt_embeds": draw(1, 28), "negative_pooled_prompt_embeds": draw(1, 28, seed=3)}
    return Whole(pipe, {**SQUARE, **texts(40), **pooled, "true_cfg_scale": 2.5})


def flux2() -> Whole:
    pipe = assembled("Flux2Pipeline", transformer=denoiser("Flux2Transformer2DModel"), scheduler=flow(**DYNAMIC))
    return Whole(pipe, {**SQUARE, "prompt_embeds": text(40)})


def qwen() -> Whole:
    """The negative prompt is longer than the prompt."""
    pipe = assembled(
        "QwenImagePipeline", transformer=denoiser("QwenImageTransformer2DModel"), scheduler=flow(**DYNAMIC)
    )
    given = texts(40, "prompt_embeds_mask", negative_tokens=TOKENS + 2)
    return Whole(pipe, {**SQUARE, **given, "true_cfg_scale": 3.0})


def wan(parts: int = 1, **config: Any) -> Whole:
    """Wan 2.1, or with two parts 2.2: the second denoiser takes over below the boundary."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    models = {"transformer": denoiser("WanTransformer3DModel")}
    if parts > 1:
        models["transformer_2"] = denoiser("WanTransformer3DModel", seed=1)
        config["boundary_ratio"] = 0.7
    pipe = assembled("WanPipeline", **models, scheduler=scheduler, **config)
    return Whole(pipe, {"height": 32, "width": 32, "num_frames": 5, **texts(40)}, tuple(models))


def ltx() -> Whole:
    pipe = assembled("LTXPipeline", transformer=denoiser("LTXVideoTransformer3DModel"), scheduler=flow(**DYNAMIC))
    given = texts(40, "prompt_attention_mask", torch.bool)
    return Whole(pipe, {"height": 64, "width": 64, "num_frames": 9, **given})


def hunyuan_video() -> Whole:
    pipe = assembled("HunyuanVideoPipeline", transformer=denoiser("HunyuanVideoTransformer3DModel"), scheduler=flow())
    pooled = {"pooled_prompt_embeds": draw(1, 28), "negative_pooled_prompt_embeds": draw(1, 28, seed=3)}
    given = {**texts(40, "prompt_attention_mask"), **pooled, "true_cfg_scale": 2.5}
    return Whole(pipe, {"height": 32, "width": 32, "num_frames": 5, **given})


def _second(width: int, tokens: int) -> dict[str, Any]:
    """A second text and its negative."""
    given = {"prompt_embeds_2": text(width, seed=4, tokens=tokens)}
    given["negative_prompt_embeds_2"] = text(width, seed=5, tokens=tokens)
    for name in ("prompt_embeds_mask_2", "negative_prompt_embeds_mask_2"):
        given[name] = torch.ones(1, tokens, dtype=torch.long)
    return given


def _hunyuan_15_vae() -> Any:
    torch.manual_seed(3)
    return diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=32, block_out_channels=(16, 16, 16, 16, 16), layers_per_block=1
    ).eval()  # fmt: skip


def hunyuan_video_15() -> Whole:
    """A guider makes the branches' calls and names them."""
    from diffusers.guiders import ClassifierFreeGuidance

    pipe = assembled(
        "HunyuanVideo15Pipeline", transformer=denoiser("HunyuanVideo15Transformer3DModel"), scheduler=flow(),
        guider=ClassifierFreeGuidance(guidance_scale=3.0), vae=_hunyuan_15_vae(),
    )  # fmt: skip
    given = {**texts(40, "prompt_embeds_mask"), **_second(40, 4)}
    return Whole(pipe, {"height": 64, "width": 64, "num_frames": 5, **given})


def hunyuan_image() -> Whole:
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    guider = AdaptiveProjectedMixGuidance(guidance_scale=3.0)
    pipe = assembled(
        "HunyuanImagePipeline", transformer=denoiser("HunyuanImageTransformer2DModel", text_embed_2_dim=40),
        scheduler=flow(), guider=guider, ocr_guider=guider,
    )  # fmt: skip
    return Whole(pipe, {"height": 128, "width": 128, **texts(32, "prompt_embeds_mask"), **_second(40, 4)})


def krea2() -> Whole:
    pipe = assembled("Krea2Pipeline", transformer=denoiser("Krea2Transformer2DModel"), scheduler=flow(**DYNAMIC))
    pair = {"prompt_embeds": draw(1, TOKENS, 2, 32), "negative_prompt_embeds": draw(1, TOKENS, 2, 32, seed=3)}
    masks = {f"{sign}prompt_embeds_mask": torch.ones(1, TOKENS, dtype=torch.bool) for sign in ("", "negative_")}
    return Whole(pipe, {**SQUARE, **pair, **masks, "guidance_scale": 3.0})


def sd3(**given: Any) -> Whole:
    pipe = assembled(
        "StableDiffusion3Pipeline", transformer=denoiser("SD3Transformer2DModel", sample_size=8), scheduler=flow()
    )
    pooled = {"pooled_prompt_embeds": draw(1, 28), "negative_pooled_prompt_embeds": draw(1, 28, seed=3)}
    return Whole(pipe, {**SQUARE, **texts(40), **pooled, **given})


def sd3_skip_layer() -> Whole:
    """A third call with a block left out, from the third step to the sixth."""
    return sd3(skip_guidance_layers=[1], skip_layer_guidance_start=0.2, skip_layer_guidance_stop=0.8)


def chroma() -> Whole:
    pipe = assembled("ChromaPipeline", transformer=denoiser("ChromaTransformer2DModel"), scheduler=flow())
    return Whole(pipe, {**SQUARE, **texts(40, "prompt_attention_mask", torch.bool)})


def hidream() -> Whole:
    pipe = assembled("HiDreamImagePipeline", transformer=denoiser("HiDreamImageTransformer2DModel"), scheduler=flow())
    pipe.default_sample_size = 8  # it takes the proportions of the size asked for, and this many pixels
    given = {
        f"{sign}{name}": draw(*shape, seed=seed)
        for sign, seed in (("", 2), ("negative_", 3))
        for name, shape in (
            ("prompt_embeds_t5", (1, TOKENS, 40)), ("prompt_embeds_llama3", (2, 1, TOKENS, 40)),
            ("pooled_prompt_embeds", (1, 40)),
        )
    }  # fmt: skip
    return Whole(pipe, {**SQUARE, **given})


def cogvideox() -> Whole:
    pipe = assembled(
        "CogVideoXPipeline", transformer=denoiser("CogVideoXTransformer3DModel"),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )  # fmt: skip
    return Whole(pipe, {"height": 64, "width": 64, "num_frames": 5, **texts(40)})


def cogview4() -> Whole:
    pipe = assembled("CogView4Pipeline", transformer=denoiser("CogView4Transformer2DModel"), scheduler=flow(**DYNAMIC))
    return Whole(pipe, {**SQUARE, **texts(40)})


def pixart() -> Whole:
    pipe = assembled(
        "PixArtSigmaPipeline", transformer=denoiser("PixArtTransformer2DModel", sample_size=8),
        scheduler=DPMSolverMultistepScheduler(),
    )  # fmt: skip
    given = texts(40, "prompt_attention_mask")
    return Whole(pipe, {**SQUARE, **given, "negative_prompt": None, "use_resolution_binning": False})


def sana() -> Whole:
    pipe = assembled(
        "SanaPipeline", transformer=denoiser("SanaTransformer2DModel"),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip
    given = texts(40, "prompt_attention_mask")
    return Whole(pipe, {"height": 128, "width": 128, **given, "negative_prompt": None, "use_resolution_binning": False})


def lumina2() -> Whole:
    pipe = assembled("Lumina2Pipeline", transformer=denoiser("Lumina2Transformer2DModel"), scheduler=flow(**DYNAMIC))
    return Whole(pipe, {**SQUARE, **texts(40, "prompt_attention_mask")})


def auraflow() -> Whole:
    pipe = assembled("AuraFlowPipeline", transformer=denoiser("AuraFlowTransformer2DModel"), scheduler=flow())
    return Whole(pipe, {**SQUARE, **texts(40, "prompt_attention_mask")})


def mochi() -> Whole:
    pipe = assembled(
        "MochiPipeline", transformer=denoiser("MochiTransformer3DModel"), scheduler=flow(shift=1.0, invert_sigmas=True)
    )
    return Whole(pipe, {"height": 32, "width": 32, "num_frames": 7, **texts(40, "prompt_attention_mask", torch.bool)})


PIPELINES: dict[str, Callable[[], Whole]] = {
    "ZImagePipeline": z_image,
    "FluxPipeline": flux,
    "Flux2Pipeline": flux2,
    "QwenImagePipeline": qwen,
    "WanPipeline": wan,
    "WanPipeline, two denoisers": partial(wan, 2),
    "LTXPipeline": ltx,
    "HunyuanVideoPipeline": hunyuan_video,
    "HunyuanVideo15Pipeline": hunyuan_video_15,
    "HunyuanImagePipeline": hunyuan_image,
    "Krea2Pipeline": krea2,
    "StableDiffusion3Pipeline": sd3,
    "StableDiffusion3Pipeline, skip-layer": sd3_skip_layer,
    "ChromaPipeline": chroma,
    "HiDreamImagePipeline": hidream,
    "CogVideoXPipeline": cogvideox,
    "CogView4Pipeline": cogview4,
    "PixArtSigmaPipeline": pixart,
    "SanaPipeline": sana,
    "Lumina2Pipeline": lumina2,
    "AuraFlowPipeline": auraflow,
    "MochiPipeline": mochi,
}
