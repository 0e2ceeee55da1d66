"""Full-width models without weights, and pipelines that only loop over them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
)
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from .fake import Recorder

STEPS = 16
BLOCKS, WIDTHS = 4, {"flux": 3072, "dit": 1152, "hunyuan-video": 3072}
Step = tuple[int, list[str]]  # calls, and what made the host wait


def on_cuda(model: nn.Module) -> Any:
    """A model made on the meta device, with parameters on "cuda" in bf16."""
    for module in model.modules():
        for name, each in module._parameters.items():
            if each is not None:
                data = torch.empty(each.shape, dtype=torch.bfloat16, device="cuda")
                module._parameters[name] = nn.Parameter(data, requires_grad=False)
        for name, each in module._buffers.items():
            if each is not None:
                module._buffers[name] = torch.empty(each.shape, dtype=each.dtype, device="cuda")
    return model.eval()


def flux_dev(double: int = 2, single: int = 2) -> Any:
    """FLUX.1-dev with so many of its 19 double and 38 single blocks."""
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True)


def dit_xl() -> Any:
    """DiT-XL/2 at 512 pixels, 4 of its 28 blocks."""
    with torch.device("meta"):
        return DiTTransformer2DModel(num_layers=4, sample_size=64, norm_type="ada_norm_zero", num_embeds_ada_norm=1000)


def hunyuan_video() -> Any:
    """HunyuanVideo with 2 of its 20 double and 2 of its 40 single blocks."""
    with torch.device("meta"):
        return HunyuanVideoTransformer3DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")


def flux_inputs(batch: int) -> dict[str, Any]:
    """A picture of 1,024 x 1,024 pixels."""
    return {
        "hidden_states": randn(batch, 4096, 64),
        "encoder_hidden_states": randn(batch, 512, 4096),
        "pooled_projections": randn(batch, 768),
        "guidance": torch.full([batch], 3.5, device="cuda"),
        "img_ids": torch.zeros(4096, 3, device="cuda"),
        "txt_ids": torch.zeros(512, 3, device="cuda"),
    }


def dit_inputs(batch: int) -> dict[str, Any]:
    labels = torch.zeros(batch, dtype=torch.long, device="cuda")
    return {"hidden_states": randn(batch, 4, 64, 64), "class_labels": labels}


def video_inputs(batch: int) -> dict[str, Any]:
    """17 frames of 256 x 256 pixels."""
    return {
        "hidden_states": randn(batch, 16, 5, 32, 32),
        "encoder_hidden_states": randn(batch, 256, 4096),
        "encoder_attention_mask": torch.ones(batch, 256, dtype=torch.bool, device="cuda"),
        "pooled_projections": randn(batch, 768),
        "guidance": torch.full([batch], 6000.0, dtype=torch.bfloat16, device="cuda"),
    }


FAMILIES = {
    "flux": (flux_dev, flux_inputs),
    "dit": (dit_xl, dit_inputs),
    "hunyuan-video": (hunyuan_video, video_inputs),
}


class Loop(DiffusionPipeline):
    """Calls its denoiser once per step, as pipelines do, and makes nothing of it.

    Attributes:
        steps: what each step took.
    """

    default_sample_size = 128
    vae_scale_factor_temporal, vae_scale_factor_spatial = 4, 8

    def __init__(self, transformer: Any, scheduler: Any):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.steps: list[Step] = []

    def __call__(
        self,
        inputs: dict[str, Any],
        recorder: Recorder,
        max_sequence_length: int = 512,
        num_frames: int = 17,
        height: int = 256,
        width: int = 256,
    ) -> None:
        batch = len(inputs["hidden_states"])
        scale = 1.0 if "pooled_projections" in inputs and "encoder_attention_mask" not in inputs else 1000.0
        for step, level in enumerate(self.scheduler.sigmas.tolist()[:-1]):
            self.scheduler._step_index = step
            timestep = torch.full([batch], level * scale, device="cuda")
            calls, waits = recorder.calls, len(recorder.waits)
            named = isinstance(self.transformer, CacheMixin)
            with torch.no_grad(), self.transformer.cache_context("cond") if named else nullcontext():
                self.transformer(**inputs, timestep=timestep, return_dict=False)
            self.steps.append((recorder.calls - calls, recorder.waits[waits:]))


def scheduler(steps: int = STEPS) -> FlowMatchEulerDiscreteScheduler:
    """Its noise levels are real numbers on the host: call it outside of `fake_cuda`."""
    made = FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(steps)
    return made
