"""The diffusers pipeline of `shapes-video`: HunyuanVideo's own loop over pixels, without a VAE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_output import HunyuanVideoPipelineOutput
from diffusers.video_processor import VideoProcessor

from ..core.validate import some_prompts
from .clips import FRAMES, parse_clip
from .prompt import VIDEOS, PromptEncoder


def tokenize(prompts: Any) -> torch.Tensor:
    """Token numbers (B, 9) int64 of prompts, each brought to its canonical wording first.

    Raises:
        StackError: a prompt outside the known language, or none.
    """
    return VIDEOS.tokens([parse_clip(text).caption() for text in some_prompts(prompts)])


class ShapesVideoPipeline(HunyuanVideoPipeline):
    """`HunyuanVideoPipeline` on pixels: same call, same denoising loop; no VAE, a word table for text encoders.

    Example:
        >>> pipe = load("shapes-video")
        >>> pipe("a red ring moving left", num_inference_steps=50).frames[0]
    """

    model_cpu_offload_seq = "prompt_encoder->transformer"
    _optional_components: ClassVar[list[str]] = []

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: HunyuanVideoTransformer3DModel,
        prompt_encoder: PromptEncoder,
        size: int = 32,
        frames: int = FRAMES,
    ):
        super(HunyuanVideoPipeline, self).__init__()  # HunyuanVideoPipeline's own __init__ insists on a VAE and Llama
        self.register_modules(scheduler=scheduler, transformer=transformer, prompt_encoder=prompt_encoder)
        self.register_to_config(size=size, frames=frames)
        self.vae_scale_factor_temporal = self.vae_scale_factor_spatial = 1
        self.default_height = self.default_width = size
        self.default_num_frames = frames
        self.video_processor = VideoProcessor(vae_scale_factor=1)

    def encode_prompt(self, prompt: Any, *_: Any, num_videos_per_prompt: int = 1, **kwargs: Any) -> Any:
        """Embeddings (B, 9, 64), pooled vector (B, 128) and mask (B, 9) of the prompts; every word counts."""
        embeds, pooled = kwargs.get("prompt_embeds"), kwargs.get("pooled_prompt_embeds")
        if embeds is None or pooled is None:
            tokens = tokenize(prompt)
            embeds, pooled = self.prompt_encoder(tokens.to(self.prompt_encoder.device))
        embeds, pooled = (x.repeat_interleave(num_videos_per_prompt, 0) for x in (embeds, pooled))
        return embeds, pooled, torch.ones(embeds.shape[:2], device=embeds.device)

    @torch.no_grad()
    def __call__(self, prompt: Any = None, *args: Any, max_sequence_length: int = VIDEOS.length, **kwargs: Any) -> Any:
        """See `HunyuanVideoPipeline.__call__`; `output_type` is "pil" (default), "pt", "np" or "latent".

        "pt" is (B, F, 3, H, W) in [0, 1]; "latent" is (B, 3, F, H, W) in [-1, 1], not clamped.

        Raises:
            StackError: a prompt outside the known language, or none.
        """
        if kwargs.get("prompt_embeds") is None:
            # Unreadable prompts are refused before diffusers looks at them.
            tokenize(prompt)
            prompt = list(prompt) if isinstance(prompt, tuple) else prompt
        output_type = kwargs.pop("output_type", "pil")
        return_dict = kwargs.pop("return_dict", True)
        for name, value in (("height", "size"), ("width", "size"), ("num_frames", "frames")):
            kwargs.setdefault(name, self.config[value])
        videos = super().__call__(prompt, *args, output_type="latent", return_dict=False, **kwargs)[0]
        if output_type != "latent":
            videos = self.video_processor.postprocess_video(videos.float().clamp(-1, 1), output_type=output_type)
        return HunyuanVideoPipelineOutput(frames=videos) if return_dict else (videos,)
