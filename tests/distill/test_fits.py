"""Which cards are for which models: by the denoiser's class, its sizes, the pipeline and its number of denoisers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest

from stack.core.facts import Facts, Machine
from stack.distill.card import Card
from stack.distill.find import cards_in, shipped_folder
from stack.distill.fits import misfit, unusable
from stack.models.examples.shrink import defaults
from stack.reference.published import published_models

CARDS = {card.name: card for card in cards_in(shipped_folder())}
FLUX = {
    "flux-schnell",
    "flux-turbo-alpha",
    "hyper-flux-16",
    "hyper-flux-8",
    "shapes-flux-4",
    "shapes-flux-8",
    "tdd-flux",
}
SD3 = {"hyper-sd3-16", "hyper-sd3-4", "hyper-sd3-8", "pcm-sd3-2-shift1", "pcm-sd3-4-shift1", "pcm-sd3-4-shift3"}
SDXL = {"lcm-lora-sdxl", "sdxl-lightning-2", "sdxl-lightning-4", "sdxl-lightning-8", "tdd-sdxl"}
QWEN = {
    "qwen-image-2512-lightning-4", "qwen-image-2512-lightning-8", "qwen-image-fp8-lightning-4",
    "qwen-image-lightning-4", "qwen-image-lightning-8",
}  # fmt: skip
VIDEO = {"accvideo-5", "fasthunyuan-6", "shapes-video-8"}
# Of each model whose configuration ships, the cards that fit it.
SHIPPED = {
    "black-forest-labs/FLUX.1-dev": FLUX,
    "black-forest-labs/FLUX.1-schnell": FLUX,
    "black-forest-labs/FLUX.2-dev": set(),
    "black-forest-labs/FLUX.2-klein-4B": {"flux2-klein-4b"},
    "black-forest-labs/FLUX.2-klein-9B": {"flux2-klein-9b"},
    "hunyuanvideo-community/HunyuanVideo": VIDEO,
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v": {"hunyuanvideo15-lightx2v-4"},
    "Lightricks/LTX-Video": set(),
    "Qwen/Qwen-Image": QWEN,
    "stabilityai/stable-diffusion-3.5-large": {"sd35-large-turbo"},
    "stabilityai/stable-diffusion-xl-base-1.0": SDXL,
    "Tongyi-MAI/Z-Image-Turbo": {"z-image-turbo"},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": {"fastwan21-14b-3", "wan21-causvid-14b", "wan21-t2v-lightx2v-4"},
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": {"wan22-t2v-lightx2v-4"},
}
WAN = "WanTransformer3DModel"
I2V = {"num_layers": 40, "in_channels": 36}
# Class, pipeline, denoisers and configuration of others, and the cards that fit them.
OTHERS: dict[str, tuple[str, str, int, dict[str, Any], set[str]]] = {
    "SD1.5": (
        "UNet2DConditionModel", "StableDiffusionPipeline", 1, {"cross_attention_dim": 768}, {"lcm-lora-sd15"}
    ),
    "SD2": ("UNet2DConditionModel", "StableDiffusionPipeline", 1, {"cross_attention_dim": 1024}, set()),
    "SD3-medium": (
        "SD3Transformer2DModel", "StableDiffusion3Pipeline", 1, {"num_layers": 24, "pos_embed_max_size": 192}, SD3
    ),
    "SD3.5-medium": (
        "SD3Transformer2DModel", "StableDiffusion3Pipeline", 1, {"num_layers": 24, "pos_embed_max_size": 384}, set()
    ),
    "PixArt-alpha": ("PixArtTransformer2DModel", "PixArtAlphaPipeline", 1, {}, {"pixart-lcm"}),
    "Wan2.1 1.3B": (
        WAN, "WanPipeline", 1, {"num_layers": 30, "in_channels": 16}, {"fastwan21-1.3b-3", "wan21-causvid-1.3b"}
    ),
    "Wan2.1 I2V": (WAN, "WanImageToVideoPipeline", 1, I2V, {"wan21-i2v-lightx2v-4"}),
    "Wan2.2 I2V": (WAN, "WanImageToVideoPipeline", 2, I2V, {"wan22-i2v-lightx2v-4"}),
    "Wan2.2 5B": (WAN, "WanPipeline", 1, {"num_layers": 30, "in_channels": 48}, {"fastwan22-5b-3"}),
    "LTX 13B": (
        "LTXVideoTransformer3DModel", "LTXConditionPipeline", 1, {"num_layers": 48},
        {"ltx-097-distilled", "ltx-098-distilled"},
    ),
    "Qwen-Image-Edit": (
        "QwenImageTransformer2DModel", "QwenImageEditPipeline", 1, {},
        {"qwen-image-edit-lightning-4", "qwen-image-edit-lightning-8"},
    ),
    "Qwen-Image-Edit-2509": (
        "QwenImageTransformer2DModel", "QwenImageEditPlusPipeline", 1, {},
        {"qwen-image-edit-2509-lightning-4", "qwen-image-edit-2509-lightning-8"},
    ),
    # The configuration of 2509 is nowhere published but in its own files, so that its cards do not name it.
    "Qwen-Image-Edit-2511": (
        "QwenImageTransformer2DModel", "QwenImageEditPlusPipeline", 1, {"zero_cond_t": True},
        {f"qwen-image-edit-{version}-lightning-{steps}" for version in (2509, 2511) for steps in (4, 8)},
    ),
}  # fmt: skip


def facts(kind: str, pipeline: str, denoisers: int, config: dict[str, Any]) -> Facts:
    return Facts(
        family="any", machine=Machine("cpu"), dtype="float32", blocks=0, width=0, heads=0, head_dim=0, image_tokens=0,
        text_tokens=0, steps=4, pipeline_class=pipeline, denoiser_class=kind, denoisers=denoisers,
        config=defaults(getattr(diffusers, kind)) | config,
    )  # fmt: skip


def fitting(given: Facts) -> set[str]:
    return {name for name, card in CARDS.items() if not misfit(card, given)}


@pytest.mark.parametrize("repo", published_models())
def test_the_cards_that_fit_a_published_configuration(repo: str) -> None:
    model = published_models()[repo]
    assert fitting(facts(model.denoiser, model.pipeline, model.denoisers, model.config)) == SHIPPED.get(repo, set())


@pytest.mark.parametrize("name", OTHERS)
def test_the_cards_that_fit_another_model(name: str) -> None:
    kind, pipeline, denoisers, config, wanted = OTHERS[name]
    assert fitting(facts(kind, pipeline, denoisers, config)) == wanted


def test_every_card_that_names_sizes_fits_one_of_these_models() -> None:
    found = set().union(*SHIPPED.values(), *(wanted for *_, wanted in OTHERS.values()))
    assert {name for name, card in CARDS.items() if card.config or card.pipelines} <= found


def test_what_is_not_known_is_not_held_against_a_model() -> None:
    bare = facts(WAN, "", 1, {"num_layers": 40, "in_channels": 16})
    assert fitting(bare) >= {"wan21-t2v-lightx2v-4", "wan22-t2v-lightx2v-4"}
    assert not any(misfit(card, replace(bare, denoiser_class="")) for card in CARDS.values())


def test_the_words_of_every_reason() -> None:
    given = facts(WAN, "WanPipeline", 2, {"num_layers": 40, "in_channels": 16})
    card = Card("mine", steps=4, classes=(WAN,))
    assert misfit(card, given) == "mine is made for a pipeline of 1 denoiser: this one has 2 denoisers"
    assert misfit(replace(card, switch=2), given) == ""
    small = replace(card, switch=2, config={"num_layers": 30})
    assert misfit(small, given) == "mine is made for a model with num_layers 30: this one has 40"
    assert misfit(replace(card, pipelines=("A", "B")), given) == "mine is made for A or B: this pipeline is WanPipeline"
    assert misfit(Card("mine", family="flux"), given) == "mine is made for flux: this model is any"
    assert misfit(Card("mine", pipeline="A"), given) == "mine is made for A: this model is any"
    assert misfit(Card("mine"), given) == ""
    assert unusable(replace(card, classes=("WanTransformer9DModel",))).startswith(
        "mine is for WanTransformer9DModel, which diffusers 0.42.1 lacks"
    )
