"""A pipeline of FLUX.1-dev's shape with random weights, made on the device: for time and memory, never for quality."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from .setting import Setting

HEAD_DIM = 128
FULL = {
    "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768,
}  # fmt: skip
TINY = {
    "num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2,
    "joint_attention_dim": 128, "pooled_projection_dim": 64,
}  # fmt: skip
GAIN = 0.5  # of a linear: 57 residual blocks of gain 1 would leave the range of half precision


class Flux:
    """The pipeline, made when it is first asked for."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.shape = setting.either(FULL, TINY)
        self._pipe: Any = None

    @property
    def pipe(self) -> Any:
        if self._pipe is None:
            self._pipe = pipeline(denoiser(self.shape, self.setting.device))
        return self._pipe

    def drop(self) -> None:
        """Let go of it: the next row makes the same weights again, with nothing left on them."""
        self._pipe = None

    def request(self, size: int, steps: int) -> dict[str, Any]:
        """Arguments of a call for one picture: embeddings in place of a prompt, latents in place of pixels.

        Args:
            size: of the picture, in pixels.
        """
        device, dtype = self.setting.device, torch.bfloat16
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(1, self.setting.either(512, 64), self.shape["joint_attention_dim"], generator=generator)
        pooled = torch.randn(1, self.shape["pooled_projection_dim"], generator=generator)
        return {
            "prompt_embeds": text.to(device, dtype), "pooled_prompt_embeds": pooled.to(device, dtype),
            "height": size, "width": size, "num_inference_steps": steps, "guidance_scale": 3.5,
            "output_type": "latent",
        }  # fmt: skip


@torch.no_grad()
def denoiser(shape: dict[str, int], device: torch.device) -> FluxTransformer2DModel:
    """Weights drawn on the device from a fixed seed, in bfloat16: 24 GB in the full shape, in a second."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            patch_size=1, in_channels=64, guidance_embeds=True, attention_head_dim=HEAD_DIM,
            axes_dims_rope=(16, 56, 56), **shape,
        )  # fmt: skip
    model = model.to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, GAIN / parameter.shape[1] ** 0.5, generator=generator)
        else:
            parameter.fill_(1 if "norm_" in name and name.endswith("weight") else 0)
    return model.eval().requires_grad_(False)


def pipeline(transformer: FluxTransformer2DModel) -> FluxPipeline:
    """FLUX.1-dev's scheduler and loop; no text encoders, no VAE."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
        max_image_seq_len=4096,
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=transformer,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
