"""The diffusers pipeline of the reference model: FLUX's own loop over pixels, without a VAE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from ..core.validate import some_prompts
from .prompt import PromptEncoder, tokenize

PATCH = 2
CANVAS = 32  # rotary positions span 0..32 at every resolution, so that weights carry over between resolutions


def image_ids(rows: int, columns: int) -> torch.Tensor:
    """Rotary positions (rows * columns, 3) of the patch centres, normalised to the canvas."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = ((torch.arange(rows) + 0.5) * CANVAS / rows)[:, None]
    ids[..., 2] = ((torch.arange(columns) + 0.5) * CANVAS / columns)[None]
    return ids.reshape(-1, 3)


def patchify(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) pictures to (B, H/2 * W/2, 12) tokens, in FLUX's own packing order."""
    batch, channels, height, width = pictures.shape
    return FluxPipeline._pack_latents(pictures, batch, channels, height, width)


def unpatchify(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `patchify`: (B, H/2 * W/2, 12) tokens to (B, 3, H, W) pictures."""
    return FluxPipeline._unpack_latents(tokens, height, width, vae_scale_factor=1)


class ShapesFluxPipeline(FluxPipeline):
    """`FluxPipeline` on pixels: same call, same denoising loop, same schedule; no VAE, a word table for a text encoder.

    Example:
        >>> pipe = load("shapes-flux")
        >>> pipe("a red ring left of a blue star", num_inference_steps=50).images[0]
    """

    model_cpu_offload_seq = "prompt_encoder->transformer"
    _optional_components: ClassVar[list[str]] = []

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: FluxTransformer2DModel,
        prompt_encoder: PromptEncoder,
        size: int = 64,
    ):
        super(FluxPipeline, self).__init__()  # FluxPipeline's own __init__ insists on a VAE and two text encoders
        self.register_modules(scheduler=scheduler, transformer=transformer, prompt_encoder=prompt_encoder)
        self.register_to_config(size=size)
        self.vae_scale_factor = 1
        self.default_sample_size = size
        self.tokenizer_max_length = 16
        self.image_processor = VaeImageProcessor(vae_scale_factor=PATCH)

    def encode_prompt(self, prompt: str | list[str], *_: Any, num_images_per_prompt: int = 1, **kwargs: Any) -> Any:
        """Embeddings (B, 16, 64), pooled vector (B, 128) and text ids (16, 3) of the prompts."""
        embeds, pooled = kwargs.get("prompt_embeds"), kwargs.get("pooled_prompt_embeds")
        dtype = self.transformer.dtype
        if embeds is None or pooled is None:
            tokens = tokenize(some_prompts(prompt))
            embeds, pooled = self.prompt_encoder(tokens.to(self.prompt_encoder.device))
        embeds, pooled = (x.to(dtype).repeat_interleave(num_images_per_prompt, 0) for x in (embeds, pooled))
        return embeds, pooled, torch.zeros(embeds.shape[1], 3, device=embeds.device, dtype=dtype)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """FLUX's noise, with rotary positions normalised to the canvas."""
        _, _, height, width, dtype, device = args[:6]
        latents, _ = super().prepare_latents(*args, **kwargs)
        return latents, image_ids(height // PATCH, width // PATCH).to(device=device, dtype=dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        *args: Any,
        num_inference_steps: int = 50,
        max_sequence_length: int = 16,
        **kwargs: Any,
    ) -> Any:
        """See `FluxPipeline.__call__`; `output_type` is "pil" (default), "pt", "np" or "latent" (packed tokens).

        Raises:
            StackError: a prompt outside the known language, or none.
        """
        if kwargs.get("prompt_embeds") is None:
            # Unreadable prompts are refused before diffusers looks at them.
            tokenize(some_prompts(prompt))
            prompt = list(prompt) if isinstance(prompt, tuple) else prompt
        output_type = kwargs.pop("output_type", "pil")
        return_dict = kwargs.pop("return_dict", True)
        height = kwargs.setdefault("height", self.config.size)
        width = kwargs.setdefault("width", self.config.size)
        kwargs |= {"num_inference_steps": num_inference_steps, "output_type": "latent", "return_dict": False}
        tokens = super().__call__(prompt, *args, **kwargs)[0]
        if output_type == "latent":
            images = tokens
        else:
            pictures = unpatchify(tokens.float(), height, width).clamp(-1, 1)
            images = self.image_processor.postprocess(pictures, output_type=output_type)
        return FluxPipelineOutput(images=images) if return_dict else (images,)
