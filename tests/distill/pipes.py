"""Tiny pipelines of families that the stack itself does not take, without text encoders or VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

# The schedulers of the published bases: Qwen-Image's and LTX-Video's stretch their end and shift with the size.
QWEN = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
    "max_image_seq_len": 8192, "shift_terminal": 0.02, "time_shift_type": "exponential",
}  # fmt: skip
LTX = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
       "shift_terminal": 0.1}  # fmt: skip


@dataclass
class Tiny:
    """A pipeline and what a call of it needs."""

    pipe: Any
    given: dict[str, Any]
    scale: float = 1000.0  # its denoiser's timestep over sigma

    def run(self, arguments: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, list[float]]]:
        """The latents, and the noise levels that each transformer was called at."""
        seen: dict[str, list[float]] = {}
        handles = []
        for name in ("transformer", "transformer_2"):
            module = self.pipe.components.get(name)
            if module is not None:
                seen[name] = []

                def note(_: Any, __: Any, kwargs: dict[str, Any], at: list[float] = seen[name]) -> None:
                    at.append(float(kwargs["timestep"].flatten()[0]) / self.scale)

                handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
        try:
            generator = torch.Generator().manual_seed(0)
            out = self.pipe(**{**self.given, **arguments}, generator=generator, output_type="latent", return_dict=False)
        finally:
            for handle in handles:
                handle.remove()
        return out[0], seen


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3() -> Tiny:
    """Stable Diffusion 3: shift 3, guidance by two denoiser calls in one batch."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
    ).eval()  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    text, pooled = torch.randn(1, 4, 16), torch.randn(1, 16)
    given = {"prompt_embeds": text, "negative_prompt_embeds": -text, "pooled_prompt_embeds": pooled}
    return Tiny(_quiet(pipe), {**given, "negative_pooled_prompt_embeds": -pooled, "height": 64, "width": 64})


def qwen() -> Tiny:
    """Qwen-Image: its own stretched, size-dependent schedule."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**QWEN), vae=None, text_encoder=None, tokenizer=None,
        transformer=transformer,
    )  # fmt: skip
    text, mask = torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.long)
    given = {"prompt_embeds": text, "prompt_embeds_mask": mask, "negative_prompt_embeds": -text}
    return Tiny(_quiet(pipe), {**given, "negative_prompt_embeds_mask": mask, "height": 64, "width": 64}, scale=1.0)


def ltx() -> Tiny:
    """LTX-Video: takes timesteps, and no noise levels."""
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=16,
    ).eval()  # fmt: skip
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**LTX), vae=None, text_encoder=None, tokenizer=None,
        transformer=transformer,
    )  # fmt: skip
    text, mask = torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.bool)
    given = {"prompt_embeds": text, "prompt_attention_mask": mask, "negative_prompt_embeds": -text}
    size = {"height": 64, "width": 64, "num_frames": 9}
    return Tiny(_quiet(pipe), {**given, "negative_prompt_attention_mask": mask, **size})


def wan(boundary: float = 0.875) -> Tiny:
    """Wan2.2: two transformers, and a pipeline that takes neither noise levels nor timesteps."""
    torch.manual_seed(0)
    high, low = (
        WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=16, ffn_dim=16, num_layers=1,
        ).eval()
        for _ in range(2)
    )  # fmt: skip
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        ), transformer=high, transformer_2=low, boundary_ratio=boundary,
    )  # fmt: skip
    text = torch.randn(1, 4, 16)
    given = {"prompt_embeds": text, "negative_prompt_embeds": -text, "height": 32, "width": 32, "num_frames": 5}
    return Tiny(_quiet(pipe), given)
