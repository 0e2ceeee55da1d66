"""The diffusers pipeline of `shapes-dit`: DiT's own loop over pixels, without a VAE."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from ..core.errors import StackError
from ..core.validate import shown, some_prompts
from .classes import NULL, label_of, parse_class

Label = int | str


class ShapesDiTPipeline(DiffusionPipeline):
    """What `DiTPipeline` is to ImageNet latents, for pixels: same call, same loop, same batched guidance.

    It is no subclass: `DiTPipeline` decodes with its VAE in the method that holds the loop, and its null class is 1000.

    Example:
        >>> pipe = load("shapes-dit")
        >>> pipe("a red ring", num_inference_steps=50).images[0]
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: DDIMScheduler, size: int = 32):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(size=size)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    def get_label_ids(self, labels: Label | list[Label]) -> list[int]:
        """Class numbers of labels given as numbers, as words ("a red ring"), or as a list of either.

        Raises:
            StackError: words or a number that name no class.
        """
        ids = [label_of(parse_class(one)) if isinstance(one, str) else one for one in some_prompts(labels)]
        for number in ids:
            if not 0 <= number < NULL:
                raise StackError(f"unknown class {shown(number)}: expected a number from 0 to {NULL - 1}, or words")
        return ids

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Label | list[Label],
        guidance_scale: float = 2.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw one picture per label.

        Args:
            class_labels: see `get_label_ids`.
            guidance_scale: weight w of classifier-free guidance, uncond + w (cond - uncond); without it at 1 and below
                (Ho & Salimans 2022). Both branches run in one call: the first half is cond, the second uncond.
            output_type: "pil", "pt", "np" or "latent" (pixels in [-1, 1], not clamped).

        Raises:
            StackError: a label that names no class.
        """
        # diffusers goes through all modules for the dtype, which takes as long as a cached step.
        device, dtype, size = self._execution_device, self.transformer.dtype, self.config.size
        labels = torch.tensor(self.get_label_ids(class_labels), device=device)
        guided = guidance_scale > 1
        asked = torch.cat([labels, torch.full_like(labels, NULL)]) if guided else labels
        shape = (len(labels), self.transformer.config.in_channels, size, size)
        # The state stays in fp32: 50 small steps would be rounded away in bf16.
        pictures = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for t in self.progress_bar(self.scheduler.timesteps):
            noisy = self.scheduler.scale_model_input(torch.cat([pictures] * 2) if guided else pictures, t)
            when = t.expand(len(noisy))
            output = self.transformer(noisy.to(dtype), timestep=when, class_labels=asked).sample.float()
            if guided:
                cond, uncond = output.chunk(2)
                output = uncond + guidance_scale * (cond - uncond)
            pictures = self.scheduler.step(output, t, pictures).prev_sample
        images = pictures
        if output_type != "latent":
            images = self.image_processor.postprocess(pictures.clamp(-1, 1), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
