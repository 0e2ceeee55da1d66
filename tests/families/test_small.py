"""Every denoiser class that diffusers exports has a small random instance, whose calls show what the class computes."""

import ast
import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from stack.core.errors import StackError
from stack.models import families
from stack.models.families import FAMILIES
from stack.models.families.refused import REFUSED
from stack.models.small import Sizes, Small, samples_of, small

EXPORTED = sorted(name for name in dir(diffusers) if "Transformer" in name or "UNet" in name)
DITS = ["HunyuanDiT2DModel", "LuminaNextDiT2DModel", "StableAudio3DiTModel", "StableAudioDiTModel"]
"""Denoisers of other names."""
CLASSES = [name for name in EXPORTED if name not in REFUSED] + DITS
ALONE = {"Cosmos3OmniTransformer"}
"""Classes whose arguments have no batch axis."""
ELSEWHERE = {
    "Flux3Transformer2DModel": "mode_blocks.image_cond",  # runs with condition images only
    "WanAnimateTransformer3DModel": "motion_encoder.res_blocks",  # sees a face; divides by the number of inputs itself
}
"""Lists of modules whose weights the answer does not show."""
LARGE = {"HunyuanVideo15Transformer3DModel"}
"""Classes with a projection of 2,048 by 2,048 that no configuration makes smaller."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For models as small as these: more threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def made(name: str) -> Small:
    return small(getattr(diffusers, name))


def answer(given: Small, sizes: Sizes) -> list[torch.Tensor]:
    """All outputs of all samples, flat."""
    return [part.flatten() for sample in samples_of(given.denoiser, given.call(sizes)) for part in sample]


def differ(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference of two answers over the first one's largest number."""
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(one, other, strict=True))


def lists(denoiser: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of modules."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_answers_are_finite_repeatable_and_follow_the_sizes(name: str) -> None:
    given = made(name)
    first, again = answer(given, Sizes()), answer(given, Sizes())
    assert all(torch.isfinite(part).all() and part.std() > 1e-3 for part in first)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    larger = answer(given, Sizes(frames=5, rows=5, columns=11, text=7))
    assert len(larger[0]) > len(first[0])
    assert differ(first, answer(given, Sizes(noise=0.3))) > 1e-4
    assert differ(first, answer(given, Sizes(first=1))) > 1e-2


@pytest.mark.parametrize("name", CLASSES)
def test_is_small_and_drawn_from_a_fixed_seed(name: str) -> None:
    given = made(name)
    assert sum(weight.numel() for weight in given.denoiser.parameters()) < (5e6 if name in LARGE else 3e6)
    assert not given.denoiser.training
    assert {weight.dtype for weight in given.denoiser.parameters()} == {torch.float32}
    other = small(type(given.denoiser))
    assert all(torch.equal(a, b) for a, b in zip(given.denoiser.parameters(), other.denoiser.parameters(), strict=True))


@pytest.mark.parametrize("name", CLASSES)
def test_every_block_matters(name: str) -> None:
    given = made(name)
    first = answer(given, Sizes())
    silent = []
    for path, modules in lists(given.denoiser).items():
        for index, block in enumerate(modules):
            kept = {key: value.clone() for key, value in block.state_dict().items()}
            with torch.no_grad():
                source = torch.Generator().manual_seed(3)
                for weight in block.parameters():
                    weight.mul_(1 + 0.5 * torch.randn(weight.shape, generator=source))
            if kept and differ(first, answer(given, Sizes())) < 1e-5:
                silent.append(f"{path}.{index}")
            block.load_state_dict(kept)
    assert [path for path in silent if not path.startswith(ELSEWHERE.get(name, "none"))] == []
    assert differ(first, answer(given, Sizes())) == 0


@pytest.mark.parametrize("name", CLASSES)
def test_a_batch_gives_what_its_samples_give_alone(name: str) -> None:
    given = made(name)
    assert given.batches == (name not in ALONE), given.reason
    if given.batches:
        together = samples_of(given.denoiser, given.call(Sizes(batch=3)))
        for index, sample in enumerate(together):
            alone = samples_of(given.denoiser, given.call(Sizes(first=index)))[0]
            assert differ([part.flatten() for part in alone], [part.flatten() for part in sample]) < 1e-3


def test_every_exported_name_is_made_or_refused_with_a_reason() -> None:
    assert len(EXPORTED) == 81
    assert set(REFUSED) < set(EXPORTED)
    assert all(len(reason) > 20 for reason in REFUSED.values())
    assert sorted([*CLASSES, *REFUSED]) == sorted([*EXPORTED, *DITS])


def test_data_of_families_is_short_and_names_real_classes() -> None:
    for name, family in FAMILIES.items():
        assert name in CLASSES
        assert name in family.classes
    for file in Path(families.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign):
                assert (node.end_lineno or 0) - node.lineno < 20, f"{file.name}, line {node.lineno}"
    assert len(set(CLASSES) - set(FAMILIES)) >= 8


def test_the_configuration_of_a_real_model_keeps_its_flags() -> None:
    config: dict[str, Any] = {
        "_class_name": "SD3Transformer2DModel", "num_layers": 24, "dual_attention_layers": list(range(13)),
        "qk_norm": "rms_norm", "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
    }  # fmt: skip
    denoiser = small(diffusers.SD3Transformer2DModel, config).denoiser
    assert denoiser.config.num_layers == 3
    assert denoiser.config.qk_norm == "rms_norm"
    assert denoiser.config.dual_attention_layers == [0, 1]  # 13 of 24
    assert [block.attn2 is None for block in denoiser.transformer_blocks] == [False, False, True]


def test_guidance_is_given_where_the_configuration_embeds_it() -> None:
    without = small(diffusers.FluxTransformer2DModel)
    assert "guidance" not in without.call(Sizes())
    embedded = small(diffusers.FluxTransformer2DModel, {"guidance_embeds": True})
    assert embedded.call(Sizes(batch=2))["guidance"].tolist() == [3.5, 3.5]


def test_samples_of_a_batch_are_those_of_the_calls_with_their_numbers() -> None:
    call = made("SD3Transformer2DModel").call
    both = call(Sizes(batch=2))
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        assert torch.equal(both[name][1], call(Sizes(first=1))[name][0])
    assert not torch.equal(both["hidden_states"][0], both["hidden_states"][1])


class Unknown(nn.Module):
    def __init__(self, num_layers: int = 4):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(num_layers))

    def forward(self, hidden_states: torch.Tensor, flavour: torch.Tensor) -> tuple[torch.Tensor]:
        return (hidden_states,)


class Stubborn(Unknown):
    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor]:  # type: ignore[override]
        raise RuntimeError("not today")


def test_refusals_say_what_is_missing() -> None:
    with pytest.raises(StackError, match=r"PriorTransformer has no small instance: it makes an image's embedding"):
        small(diffusers.PriorTransformer)
    with pytest.raises(
        StackError,
        match=r"Unknown.forward needs flavour.*a rule for each in stack.models.families",
    ):
        small(Unknown)
    with pytest.raises(StackError, match="no example call fits Stubborn"):
        small(Stubborn, {"num_layers": 2})
    with pytest.raises(StackError, match="no small FluxTransformer2DModel could be built"):
        small(diffusers.FluxTransformer2DModel, {"num_layers": "many"})


def test_sizes_are_small_by_default() -> None:
    assert dataclasses.astuple(Sizes()) == (1, 3, 4, 6, 5, 0, 0.7)
