"""Whole pipelines by class: how each calls its denoisers for guidance, and what a stack on it does."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch

from stack import Stack

from .build import PIPELINES, STEPS, Whole
from .special import SPECIAL

NAMED, UNNAMED = ("cond", "uncond"), ("main", "main (2)")
# Pipeline class: the branches of its denoiser calls, and how many samples each call has for one prompt.
CALLS: dict[str, tuple[tuple[str, ...], int]] = {
    "ZImagePipeline": (("main",), 2),
    "FluxPipeline": (NAMED, 1),
    "Flux2Pipeline": (("main",), 1),
    "Flux2KleinPipeline": (NAMED, 1),
    "Flux2KleinPipeline, with a picture": (NAMED, 1),
    "Flux2KleinKVPipeline": (("main",), 1),
    "QwenImagePipeline": (NAMED, 1),
    "QwenImageEditPlusPipeline": (NAMED, 1),
    "QwenImage21Pipeline": (NAMED, 1),
    "WanPipeline": (NAMED, 1),
    "WanPipeline, two denoisers": ((*NAMED, "transformer_2: cond", "transformer_2: uncond"), 1),
    "WanImageToVideoPipeline, per-token times": (NAMED, 1),
    "LTXPipeline": (("cond_uncond",), 2),
    "HunyuanVideoPipeline": (NAMED, 1),
    "HunyuanVideo15Pipeline": (("pred_cond", "pred_uncond"), 1),
    "HunyuanImagePipeline": (("pred_cond", "pred_uncond"), 1),
    "Krea2Pipeline": (UNNAMED, 1),
    "Ideogram4Pipeline": (("main", "unconditional_transformer"), 1),
    "StableDiffusion3Pipeline": (("main",), 2),
    "StableDiffusion3Pipeline, skip-layer": (UNNAMED, 2),
    "ChromaPipeline": (UNNAMED, 1),
    "HiDreamImagePipeline": (("main",), 2),
    "CogVideoXPipeline": (("cond_uncond",), 2),
    "CogView4Pipeline": (NAMED, 1),
    "PixArtSigmaPipeline": (("main",), 2),
    "SanaPipeline": (("main",), 2),
    "Lumina2Pipeline": (UNNAMED, 1),
    "AuraFlowPipeline": (("main",), 2),
    "MochiPipeline": (("cond_uncond",), 2),
    "FluxModularPipeline": (("main",), 1),
    "Flux3ModularPipeline": (UNNAMED, 1),
    "QwenImageModularPipeline": (UNNAMED, 1),
    "MiniMaxH3ModularPipeline": (("main",), 1),
    "Wan22ModularPipeline": ((*UNNAMED, "transformer_2", "transformer_2 (2)"), 1),
}
LTX2 = "LTX2Pipeline"  # see test_special
# Of the fifteen families that people use most.
NOT_BUILT = {
    "Cosmos3OmniPipeline": "its prompt is tokens that it hands to the denoiser, and it takes no embeddings",
}
ALL: dict[str, Callable[[], Whole]] = PIPELINES | SPECIAL


@contextmanager
def counted_blocks(whole: Whole) -> Iterator[Counter[str]]:
    """How often the last block of each denoiser runs, by a linear in it: the block itself may be answered."""
    seen: Counter[str] = Counter()
    handles = []
    for name in whole.denoisers:
        model = getattr(whole.pipe, name)
        block = model.get_submodule(Stack(model).wiring.blocks(model)[-1][0])

        def note(*_: Any, name: str = name) -> None:
            seen[name] += 1

        linear = next(module for module in block.modules() if isinstance(module, torch.nn.Linear))
        handles.append(linear.register_forward_pre_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def part_of(branch: str, whole: Whole) -> str:
    """Whose call a branch is."""
    name = branch.split(":")[0].split(" (")[0]
    return name if name in whole.denoisers else whole.denoisers[0]


@pytest.mark.parametrize("name", CALLS)
def test_full_steps_are_the_plain_pipeline_cached_ones_skip_blocks_and_it_comes_off(name: str) -> None:
    whole, (branches, samples) = ALL[name](), CALLS[name]
    sizes: list[int] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latent = args[0] if args else kwargs["hidden_states"]
        sizes.append(len(latent))

    handle = whole.pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    plain = whole.call()
    handle.remove()
    assert sizes[0] == samples
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=1) as stack:
        assert torch.equal(whole.call(stack), plain)
    with counted_blocks(whole) as seen, Stack(whole.pipe, steps=STEPS).cache("svd", interval=3) as stack:
        out, report = whole.call(stack), stack.report()
    assert tuple(dict.fromkeys(record.branch for record in report.steps)) == branches
    for part in whole.denoisers:
        kinds = [record.kind for record in report.steps if part_of(record.branch, whole) == part]
        assert seen[part] == kinds.count("full") < len(kinds)
    for branch in branches:  # every branch has a full step first, and then its own cached ones
        kinds = [record.kind for record in report.steps if record.branch == branch]
        assert kinds[0] == "full" and "cached" in kinds
    assert not torch.equal(out, plain) and bool(out.isfinite().all())
    assert torch.equal(whole.call(), plain)


def test_every_pipeline_built_has_its_row_and_what_is_missing_its_reason() -> None:
    assert CALLS.keys() | {LTX2} == ALL.keys()
    for name, reason in NOT_BUILT.items():
        assert inspect.isclass(getattr(diffusers, name)) and reason and name not in {key.split(",")[0] for key in ALL}
