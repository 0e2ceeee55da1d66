"""Every card that can be used, on a small model of its class: what it adds, its schedule, and how it is taken off."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from stack import Stack
from stack.distill.card import Card
from stack.distill.find import cards_in, shipped_folder
from stack.distill.fits import unusable
from stack.models.small import Sizes, Small, samples_of, small
from stack.reference.published import published_models

from .formats import FORMATS, close, write

CARDS = {card.name: card for card in cards_in(shipped_folder())}
USABLE = {name: card for name, card in CARDS.items() if not unusable(card)}
LORAS = [name for name, card in USABLE.items() if card.weights]
WHOLE = [name for name, card in USABLE.items() if not card.weights]
# Layout and rank of each card's file.
FILES: dict[str, tuple[str, int]] = {
    **dict.fromkeys(["hyper-flux-8", "hyper-flux-16", "flux-turbo-alpha", "tdd-flux"], ("peft", 64)),
    **dict.fromkeys(["hyper-sd3-4", "hyper-sd3-8", "hyper-sd3-16"], ("peft", 64)),
    **dict.fromkeys(["shapes-flux-4", "shapes-flux-8", "shapes-video-8"], ("peft", 32)),
    **dict.fromkeys(["lcm-lora-sd15", "lcm-lora-sdxl"], ("kohya", 64)),
    **dict.fromkeys(["sdxl-lightning-2", "sdxl-lightning-4", "sdxl-lightning-8"], ("kohya", 64)),
    **{name: ("qwen", 64) for name in LORAS if name.startswith("qwen")},
    **{name: ("wan", 64) for name in LORAS if "lightx2v" in name},
    **dict.fromkeys(["wan21-causvid-14b", "wan21-causvid-1.3b"], ("wan-bias", 32)),
    "chronoedit-8": ("wan", 32),
    "ltx2-distilled-lora": ("ltx2", 384),
    "ltx25-distilled-lora": ("ltx2", 450),
    "minimax-h3-turbo-4": ("minimax", 16),
}
# Flags of real models' configurations that choose which layers there are.
SDXL = published_models()["stabilityai/stable-diffusion-xl-base-1.0"].config
FLAGS = {
    **{name: SDXL for name in LORAS if "sdxl" in name},
    "wan21-i2v-lightx2v-4": {"image_dim": 1280, "added_kv_proj_dim": 5120},
    "shapes-video-8": {"guidance_embeds": True},
}
NO_PIPELINE = {
    "HunyuanVideo15Pipeline": "reads its VAE's configuration when it is made",
    "QwenImage21Pipeline": "calls its text processor when it is made",
    "MiniMaxH3ModularPipeline": "modular pipelines are taken by their denoiser",
}


def model_for(card: Card) -> Small:
    """A small model of the card's class with the flags of the model it is for."""
    torch.set_num_threads(1)
    return small(getattr(diffusers, card.classes[0]), {**card.config, **FLAGS.get(card.name, {})})


def component_of(card: Card) -> str:
    return next(iter(card.weights.files)) if card.weights else "transformer"


def pipeline_of(card: Card, denoisers: list[Any]) -> Any | None:
    """A pipeline of the card's class around denoisers, without anything else; None where its class refuses that."""
    if not card.pipeline or card.pipeline in NO_PIPELINE:
        return None
    kind = getattr(diffusers, card.pipeline)
    needed = [n for n, p in inspect.signature(kind.__init__).parameters.items() if p.default is p.empty and n != "self"]
    noise = isinstance(denoisers[0], diffusers.UNet2DConditionModel | diffusers.PixArtTransformer2DModel)
    scheduler = diffusers.DDIMScheduler() if noise else diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    if card.scheduler.sampler == "unipc":
        settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
        scheduler = diffusers.UniPCMultistepScheduler(**settings)
    names = ("transformer", "transformer_2") if len(denoisers) > 1 else (component_of(card),)
    extra = {"boundary_ratio": 0.9} if card.switch else {}
    return kind(
        **{**dict.fromkeys(needed), "scheduler": scheduler, **dict(zip(names, denoisers, strict=True)), **extra}
    )


def copy_of(card: Card, denoiser: Any, folder: Path) -> str:
    """The card as it ships, for a model whose sizes are those of this small one."""
    text = (shipped_folder() / f"{card.name}.toml").read_text()
    for name, value in card.config.items():
        line = f"{name} = {str(value).lower()}\n"
        assert text.count(line) == 1
        text = text.replace(line, f"{name} = {str(denoiser.config[name]).lower()}\n")
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def parameters(denoisers: list[Any]) -> list[dict[str, torch.Tensor]]:
    return [{name: p.detach().clone() for name, p in d.named_parameters()} for d in denoisers]


def answer(given: Small) -> list[torch.Tensor]:
    return samples_of(given.denoiser, given.call(Sizes()))[0]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_at_least_45_cards_can_be_used_and_the_others_say_why_not() -> None:
    assert len(USABLE) >= 45 and set(FILES) == set(LORAS)
    assert {name: unusable(card) for name, card in CARDS.items() if name not in USABLE} == {
        "tdd-sdxl": "tdd-sdxl needs TDDScheduler of its authors, not in diffusers",
        **{
            name: f"{name} needs PCMFMScheduler of its authors, not in diffusers"
            for name in ("pcm-sd3-2-shift1", "pcm-sd3-4-shift1", "pcm-sd3-4-shift3")
        },
    }


@pytest.mark.parametrize("name", LORAS)
def test_its_lora_is_added_to_the_weights_and_taken_off_bit_for_bit(name: str, tmp_path: Path) -> None:
    card = CARDS[name]
    assert card.weights is not None
    given = [model_for(card) for _ in card.weights.files]
    denoisers = [one.denoiser for one in given]
    pipe = pipeline_of(card, denoisers)
    form, rank = FILES[name]
    added = [
        write(FORMATS[form], denoiser, tmp_path / file, rank, seed)
        for seed, (denoiser, file) in enumerate(zip(denoisers, card.weights.files.values(), strict=True))
    ]
    assert all(added)
    before, plain = parameters(denoisers), [answer(one) for one in given]
    scheduler = None if pipe is None else pipe.scheduler
    stack = Stack(denoisers[0] if pipe is None else pipe, steps=card.steps)
    stack.distill(copy_of(card, denoisers[0], tmp_path)).apply()
    assert stack.plan.facts_after.steps == card.steps and stack.plan.facts_after.distilled == "mine"
    for now, was, update in zip(parameters(denoisers), before, added, strict=True):
        close(now, was, {key: card.weights.scale * value for key, value in update.items()})
    if pipe is not None:
        assert (pipe.scheduler is scheduler) == (not card.scheduler.name)
    stack.undo()
    assert [equal(answer(one), was) for one, was in zip(given, plain, strict=True)] == [True] * len(given)
    for now, was in zip(parameters(denoisers), before, strict=True):
        assert all(torch.equal(now[key], was[key]) for key in was)
    assert pipe is None or pipe.scheduler is scheduler


@pytest.mark.parametrize("name", LORAS)
def test_its_lora_beside_the_weights_gives_what_it_gives_in_them(name: str, tmp_path: Path) -> None:
    card = CARDS[name]
    assert card.weights is not None
    given = [model_for(card) for _ in card.weights.files]
    denoisers = [one.denoiser for one in given]
    pipe = pipeline_of(card, denoisers)
    form, rank = FILES[name]
    for seed, (denoiser, file) in enumerate(zip(denoisers, card.weights.files.values(), strict=True)):
        write(FORMATS[form], denoiser, tmp_path / file, rank, seed)
    model, copy = denoisers[0] if pipe is None else pipe, copy_of(card, denoisers[0], tmp_path)
    plain = answer(given[-1])
    answers = []
    for switchable in (False, True):
        with Stack(model, steps=card.steps).distill(copy, switchable=switchable) as stack:
            stack.apply()
            # Through the module: the last of two denoisers is called by no stack of its own.
            answers.append(answer(given[-1]))
    merged, beside = answers
    far = max(float((one - other).abs().max()) for one, other in zip(merged, plain, strict=True))
    off = max(float((one - other).abs().max()) for one, other in zip(merged, beside, strict=True))
    assert far > 1e-3 and off < 1e-3 * max(1.0, float(max(one.abs().max() for one in merged)))
    assert equal(answer(given[-1]), plain)


def test_the_small_models_have_what_tells_the_real_ones_apart() -> None:
    sdxl, sd15 = (model_for(CARDS[name]).denoiser for name in ("lcm-lora-sdxl", "lcm-lora-sd15"))
    assert (sdxl.config.addition_embed_type, sd15.config.addition_embed_type) == ("text_time", None)
    assert (sdxl.config.use_linear_projection, sd15.config.use_linear_projection) == (True, False)
    images = [any("add_k_proj" in path for path, _ in model_for(CARDS[name]).denoiser.named_modules())
              for name in ("wan21-i2v-lightx2v-4", "wan21-t2v-lightx2v-4")]  # fmt: skip
    assert images == [True, False]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_checkpoint_brings_its_schedule_and_no_weights(name: str, tmp_path: Path) -> None:
    card, given = CARDS[name], model_for(CARDS[name])
    pipe, before = pipeline_of(card, [given.denoiser]), parameters([given.denoiser])[0]
    scheduler = None if pipe is None else pipe.scheduler
    stack = Stack(given.denoiser if pipe is None else pipe, steps=card.steps)
    stack.distill(copy_of(card, given.denoiser, tmp_path)).apply()
    assert stack.plan.facts_after.steps == card.steps and "0 linears updated" in stack.report().summaries["distill"]
    if pipe is not None and card.sigmas():
        pipe.scheduler.set_timesteps(card.steps)
        assert pipe.scheduler.sigmas.tolist() == pytest.approx([*card.sigmas(), 0.0], abs=5e-5)
    elif pipe is not None:
        assert (pipe.scheduler is scheduler) == (not card.scheduler.name)
    close(parameters([given.denoiser])[0], before, {})
    stack.undo()
    assert pipe is None or pipe.scheduler is scheduler


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.pipeline])
def test_its_class_is_the_one_of_its_pipeline(name: str) -> None:
    card = CARDS[name]
    if card.pipeline == "MiniMaxH3ModularPipeline":  # has no components of its own until it is given blocks
        assert card.classes == ("MiniMaxH3Transformer3DModel",)
        return
    for pipeline in card.pipelines or (card.pipeline,):
        entries = inspect.signature(getattr(diffusers, pipeline).__init__).parameters
        said = str(entries["unet" if "unet" in entries else "transformer"].annotation)
        assert any(kind in said for kind in card.classes), said
    assert not card.pipelines or card.pipeline in card.pipelines
