"""Tiny pipelines of diffusers with random weights: how each is built, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

HEIGHT, WIDTH = 20, 12  # pixels: 5 x 3 tokens behind a VAE that halves each side
STEPS = 14
FLUX: dict[str, Any] = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 32,
    "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 20, "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
NO_TEXT = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))


@dataclass
class Tiny:
    """A pipeline and how it is called.

    Attributes:
        pipe: the pipeline; its `transformer` is the denoiser.
        given: arguments of a call, without the generator and the number of steps.
        middle: path of a module inside a middle block, which runs on full steps only.
        steps: `num_inference_steps` of a call.
        branches: denoiser calls per timestep.
        named: whether the pipeline names its guidance branches, so that they can be told apart.
    """

    pipe: Any
    given: dict[str, Any]
    middle: str
    steps: int = STEPS
    branches: int = 1
    named: bool = True
    seen: dict[str, int] = field(default_factory=lambda: {"denoiser": 0, "middle": 0})

    def call(self, run: Any = None, steps: int | None = None, **more: Any) -> torch.Tensor:
        """The latents (or the image of a DiT) that `run`, the pipeline or a stack over it, makes from a fixed seed.

        `seen` holds how often the denoiser and the middle block ran. Schedulers that draw noise without the
        pipeline's generator find the global one at the same place too.
        """
        denoiser = self.pipe.transformer
        seen = {"denoiser": 0, "middle": 0}

        def count(name: str, *_: Any) -> None:
            seen[name] += 1

        handles = [
            denoiser.register_forward_pre_hook(partial(count, "denoiser")),
            denoiser.get_submodule(self.middle).register_forward_pre_hook(partial(count, "middle")),
        ]
        torch.manual_seed(5)
        generator = torch.Generator().manual_seed(7)
        given = {**self.given, "num_inference_steps": steps or self.steps, "generator": generator, **more}
        try:
            return torch.as_tensor((run or self.pipe)(**given, return_dict=False)[0])
        finally:
            self.seen = seen
            for handle in handles:
                handle.remove()


@contextmanager
def one_thread() -> Iterator[None]:
    """For models as small as these: more threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _vae(latent: int = 4) -> AutoencoderKL:
    """Halves each side."""
    torch.manual_seed(3)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4), layers_per_block=1, latent_channels=latent, norm_num_groups=2, sample_size=16,
        shift_factor=0.1, scaling_factor=0.4,
    ).eval()  # fmt: skip


def _settle(pipe: Any, dtype: torch.dtype) -> None:
    """Its dtype, and no progress bar."""
    pipe.set_progress_bar_config(disable=True)
    if dtype is not torch.float32:
        for name in ("transformer", "vae", "controlnet"):
            if (part := pipe.components.get(name)) is not None:
                torch.nn.Module.to(part, dtype)  # diffusers' own warns of modules to keep, of which there are none


def _flux(kind: Any, given: dict[str, Any], dtype: torch.dtype, channels: int = 16, **parts: Any) -> Tiny:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(**{**FLUX, "in_channels": channels, "out_channels": 16}).eval()
    pipe = kind(
        transformer=transformer, vae=_vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **NO_TEXT, **parts
    )
    _settle(pipe, dtype)
    text = {"prompt_embeds": _draw(1, 7, 24, seed=2).to(dtype), "pooled_prompt_embeds": _draw(1, 20, seed=3).to(dtype)}
    size = {"height": HEIGHT, "width": WIDTH, "output_type": "latent"}
    return Tiny(pipe, {**size, **text, **given}, "single_transformer_blocks.0.attn")


def _image(seed: int = 4) -> torch.Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def _mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 4:12, 2:8] = 1.0
    return mask


def flux(dtype: torch.dtype) -> Tiny:
    return _flux(FluxPipeline, {}, dtype)


def _guided(tiny: Tiny, named: bool) -> Tiny:
    """With a negative prompt: the denoiser runs twice per timestep."""
    text = {f"negative_{name}": -tiny.given[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    tiny.given |= {**text, "true_cfg_scale": 2.5}
    tiny.branches, tiny.named = 2, named
    return tiny


def flux_guided(dtype: torch.dtype) -> Tiny:
    return _guided(flux(dtype), named=True)


def img2img(dtype: torch.dtype) -> Tiny:
    """The last six tenths of the schedule."""
    tiny = _flux(FluxImg2ImgPipeline, {"image": _image(), "strength": 0.6}, dtype)
    tiny.steps = 21
    return tiny


def img2img_guided(dtype: torch.dtype) -> Tiny:
    return _guided(img2img(dtype), named=False)


def inpaint(dtype: torch.dtype) -> Tiny:
    tiny = _flux(FluxInpaintPipeline, {"image": _image(), "mask_image": _mask(), "strength": 0.7}, dtype)
    tiny.steps = 19
    return tiny


def control(dtype: torch.dtype) -> Tiny:
    return _flux(FluxControlPipeline, {"control_image": _image()}, dtype, channels=32)


def controlnet(dtype: torch.dtype) -> Tiny:
    """The control ends before the last fifth of the steps."""
    torch.manual_seed(1)
    net = FluxControlNetModel(**{**FLUX, "num_single_layers": 1}).eval()
    for module in [*net.controlnet_blocks, *net.controlnet_single_blocks, net.controlnet_x_embedder]:
        torch.nn.init.normal_(module.weight, std=0.1)  # they start at zero
    given = {"control_image": _image(), "control_guidance_end": 0.8}
    return _flux(FluxControlNetPipeline, given, dtype, controlnet=net)


def fill(dtype: torch.dtype) -> Tiny:
    """Latents, masked image and a mask of 2 x 2 per latent pixel: 16 + 16 + 16 channels per token."""
    return _flux(FluxFillPipeline, {"image": _image(), "mask_image": _mask()}, dtype, channels=48)


def kontext(dtype: torch.dtype) -> Tiny:
    given = {"image": _image(), "max_area": HEIGHT * WIDTH, "_auto_resize": False}
    return _flux(FluxKontextPipeline, given, dtype)


def dit(dtype: torch.dtype) -> Tiny:
    """Both guidance branches in one batch, and a denoiser that returns a variance too."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=3, sample_size=10,
        patch_size=2, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    for block in transformer.transformer_blocks:  # gates at zero would hide what a cache does
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.2)
    torch.nn.init.normal_(transformer.proj_out_1.weight, std=0.2)
    pipe = DiTPipeline(transformer=transformer, vae=_vae(), scheduler=DDIMScheduler(clip_sample=False))
    _settle(pipe, dtype)
    return Tiny(pipe, {"class_labels": [17], "output_type": "pt"}, "transformer_blocks.1.attn1")


def hunyuan(dtype: torch.dtype) -> Tiny:
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=32, num_layers=1, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=12, rope_axes_dim=(8, 12, 12),
    ).eval()  # fmt: skip
    pipe = HunyuanVideoPipeline(
        transformer=transformer, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), **NO_TEXT
    )
    _settle(pipe, dtype)
    mask = torch.ones(1, 7)
    mask[:, 5:] = 0
    text = {"prompt_embeds": _draw(1, 7, 16), "pooled_prompt_embeds": _draw(1, 12), "prompt_attention_mask": mask}
    size = {"height": 48, "width": 80, "num_frames": 5, "output_type": "latent"}
    return Tiny(pipe, {**{k: v.to(dtype) for k, v in text.items()}, **size}, "single_transformer_blocks.0.attn")


def hunyuan_guided(dtype: torch.dtype) -> Tiny:
    tiny = _guided(hunyuan(dtype), named=True)
    tiny.given["negative_prompt_attention_mask"] = tiny.given["prompt_attention_mask"]
    return tiny


BF16 = torch.bfloat16
PIPELINES: dict[str, Callable[[], Tiny]] = {
    "FluxPipeline": partial(flux, torch.float32),
    "FluxImg2ImgPipeline": partial(img2img, torch.float32),
    "FluxInpaintPipeline": partial(inpaint, torch.float32),
    "FluxControlPipeline": partial(control, torch.float32),
    "FluxControlNetPipeline": partial(controlnet, torch.float32),
    "FluxFillPipeline": partial(fill, torch.float32),
    "FluxKontextPipeline": partial(kontext, torch.float32),
    "DiTPipeline": partial(dit, torch.float32),
    "HunyuanVideoPipeline": partial(hunyuan, torch.float32),
    # What makes a difference to the question which step a call is: rounded timesteps, two calls per step.
    "FluxPipeline, bfloat16": partial(flux, BF16),
    "FluxImg2ImgPipeline, bfloat16": partial(img2img, BF16),
    "HunyuanVideoPipeline, bfloat16": partial(hunyuan, BF16),
    "FluxPipeline, negative prompt": partial(flux_guided, torch.float32),
    "FluxImg2ImgPipeline, negative prompt": partial(img2img_guided, torch.float32),
    "HunyuanVideoPipeline, negative prompt": partial(hunyuan_guided, torch.float32),
}
