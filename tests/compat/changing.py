"""Small denoisers, and everything about their calls that can change in the middle of a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from peft import LoraConfig

from stack.models.schedule import uniform
from training.shapes_dit import TRANSFORMER as SHAPES_DIT
from training.shapes_flux import TRANSFORMER as SHAPES_FLUX

from ..models.test_hunyuan_video import tiny_denoiser as tiny_video

STEPS, WIDTH, TOKENS, TEXT = 14, 128, 16, 6
SIGMAS = uniform(STEPS).sigmas
Call = dict[str, Any]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flux() -> FluxTransformer2DModel:
    """With guidance embedded, and a LoRA that is there from the beginning."""
    torch.manual_seed(0)
    small = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "guidance_embeds": True}
    denoiser = FluxTransformer2DModel(**{**SHAPES_FLUX, **small}).eval()
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    return denoiser


def flux_with_image() -> FluxTransformer2DModel:
    """With an IP-adapter of one image, of random weights."""
    denoiser = flux()
    for block in denoiser.transformer_blocks:
        block.attn.processor = FluxIPAdapterAttnProcessor(WIDTH, 32, num_tokens=(3,), scale=[1.0])
    projection = ImageProjection(image_embed_dim=24, cross_attention_dim=32, num_image_text_embeds=3)
    denoiser.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    return denoiser.eval()


def dit() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    config = {**SHAPES_DIT, "num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 8}
    denoiser = DiTTransformer2DModel(**config).eval()
    for block in denoiser.transformer_blocks:  # gates at zero would hide what a cache does
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.2)
    torch.nn.init.normal_(denoiser.proj_out_1.weight, std=0.2)
    return denoiser


def residuals(count: int = 2, scale: float = 0.6, tokens: int = TOKENS) -> list[torch.Tensor]:
    return [scale * drawn(1, tokens, WIDTH, seed=9 + i) for i in range(count)]


def flux_call() -> Call:
    return {
        "hidden_states": drawn(1, TOKENS, 12),
        "encoder_hidden_states": drawn(1, TEXT, 64, seed=1),
        "pooled_projections": drawn(1, 128, seed=2),
        "guidance": torch.full((1,), 3.5),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        "txt_ids": torch.zeros(TEXT, 3),
        "joint_attention_kwargs": {"scale": 1.0},
        "controlnet_block_samples": residuals(),
        "controlnet_single_block_samples": residuals(1),
    }


def with_image_call() -> Call:
    call = flux_call()
    call["joint_attention_kwargs"]["ip_adapter_image_embeds"] = [drawn(1, 1, 24, seed=4)]
    return call


def video_call() -> Call:
    return {
        "hidden_states": drawn(1, 3, 4, 16, 16),
        "encoder_hidden_states": drawn(1, 9, 64, seed=1),
        "encoder_attention_mask": torch.ones(1, 9),
        "pooled_projections": drawn(1, 128, seed=2),
        "guidance": torch.full((1,), 3.5),
        "attention_kwargs": {"scale": 1.0},
    }


def dit_call() -> Call:
    return {"hidden_states": drawn(1, 3, 8, 8), "class_labels": torch.tensor([3])}


@dataclass
class Scene:
    """A request that goes on: the model and the arguments of its calls.

    Attributes:
        autocast: whether calls are made under it.
    """

    denoiser: Any
    given: Call
    autocast: bool = field(default=False)

    def call(self, step: int, by: Callable[..., Any] | None = None) -> torch.Tensor:
        """The denoiser's output at a step, by the denoiser itself or by another one of these weights."""
        sigma = SIGMAS[step] * (1000 if "class_labels" in self.given or "encoder_attention_mask" in self.given else 1)
        wave = 0.05 * step
        latent = self.given["hidden_states"] * (1 + wave)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            made = (by or self.denoiser)(**self.given | {"hidden_states": latent, "timestep": torch.tensor([sigma])})
        return made[0]


Change = Callable[[Scene], None]


def new(name: str, make: Callable[[Any], Any]) -> Change:
    """Another object in an argument's place."""
    return lambda scene: scene.given.__setitem__(name, make(scene.given.get(name)))


def in_place(name: str) -> Change:
    return lambda scene: scene.given[name].mul_(1.5)


def nested(key: str, make: Callable[[Any], Any]) -> Change:
    """Another entry in the very dictionary that the calls are given."""
    return lambda scene: scene.given["joint_attention_kwargs"].__setitem__(key, make(scene.given))


def scale_of_image(scene: Scene) -> None:
    for block in scene.denoiser.transformer_blocks:
        block.attn.processor.scale[0] = 0.25


def image_in_place(scene: Scene) -> None:
    scene.given["joint_attention_kwargs"]["ip_adapter_image_embeds"][0].mul_(-1)


def precision(scene: Scene) -> None:
    scene.autocast = True


def dtype(scene: Scene) -> None:
    scene.denoiser.to(torch.bfloat16)
    for name, value in scene.given.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and "ids" not in name:
            scene.given[name] = value.bfloat16()
        elif isinstance(value, list):
            scene.given[name] = [x.bfloat16() for x in value]


def weaker_lora(scene: Scene) -> None:
    scene.denoiser.set_adapters("style", 0.25)


# By model: what the report calls it, and how it changes.
FLUX: dict[str, tuple[str, Change]] = {
    **{
        f"{name} {kind}": (name, change)
        for name in ("encoder_hidden_states", "pooled_projections", "guidance", "img_ids")
        for kind, change in (("new", new(name, lambda x: x * 1.5 + 0.1)), ("in place", in_place(name)))
    },
    "txt_ids new": ("txt_ids", new("txt_ids", lambda x: x + 2)),
    "residuals end": ("controlnet_block_samples", new("controlnet_block_samples", lambda x: None)),
    "single residuals end": ("controlnet_single_block_samples", new("controlnet_single_block_samples", lambda x: None)),
    "fewer residuals": ("controlnet_block_samples", new("controlnet_block_samples", lambda x: x[:1])),
    "residuals repeat": ("controlnet_blocks_repeat", new("controlnet_blocks_repeat", lambda x: True)),
    "residuals of another scale": (
        "controlnet_block_samples", new("controlnet_block_samples", lambda x: residuals(2, 0.3))
    ),
    "residuals of scale 0": ("controlnet_block_samples", new("controlnet_block_samples", lambda x: residuals(2, 0.0))),
    "residuals of another picture": (
        "controlnet_block_samples", new("controlnet_block_samples", lambda x: [r.flip(1) for r in x])
    ),
    "scale of a LoRA in the call": ("joint_attention_kwargs", nested("scale", lambda given: 0.25)),
    "scale of a LoRA on the model": ("adapters", weaker_lora),
    "autocast": ("precision", precision),
    "dtype": ("dtype", dtype),
}  # fmt: skip
IMAGE: dict[str, tuple[str, Change]] = {
    "scale of an image, in place": ("attention", scale_of_image),
    "another image": ("joint_attention_kwargs", nested("ip_adapter_image_embeds", lambda g: [drawn(1, 1, 24, seed=5)])),
    "an image changed in place": ("joint_attention_kwargs", image_in_place),
}
VIDEO: dict[str, tuple[str, Change]] = {
    "mask new": (
        "encoder_attention_mask", new("encoder_attention_mask", lambda x: torch.cat([x[:, :4], 0 * x[:, 4:]], 1))
    ),
    "mask in place": ("encoder_attention_mask", lambda scene: scene.given["encoder_attention_mask"][:, 4:].zero_()),
    "guidance in place": ("guidance", in_place("guidance")),
    "pooled in place": ("pooled_projections", in_place("pooled_projections")),
}  # fmt: skip
DIT: dict[str, tuple[str, Change]] = {
    "class new": ("class_labels", new("class_labels", lambda x: x + 4)),
    "class in place": ("class_labels", lambda scene: scene.given["class_labels"].add_(4)),
}
SCENES: dict[str, tuple[Callable[[], Any], Callable[[], Call], dict[str, tuple[str, Change]]]] = {
    "flux": (flux, flux_call, FLUX),
    "flux with an image": (flux_with_image, with_image_call, IMAGE),
    "video": (lambda: tiny_video(guidance_embeds=True), video_call, VIDEO),
    "dit": (dit, dit_call, DIT),
}
EVERY = [(scene, change) for scene, (_, _, changes) in SCENES.items() for change in changes]
