"""Bases found offline: the subspace of the features themselves, used in place of a request's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.bases import Bases, load_bases
from stack.caching.cache import Cache
from stack.caching.splits import ChannelBasis
from stack.calibration.bases_fit import GramSum
from stack.compat.noise import rounding_floor

PROMPTS = ["a red ring", "a blue star"]
STEPS = 14


def test_a_sum_of_features_gives_their_common_subspace() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 3, generator=generator)).Q
    sums = GramSum()
    for size in (1.0, 100.0):  # every sample counts the same
        sums.fit(size * torch.randn(2, 40, 3, generator=generator) @ basis.mT)
    found, (largest, gap) = sums.basis(0.999)
    assert 1 / 3 < largest < 1 and 0 < gap < largest
    assert found.shape == (16, 3)
    torch.testing.assert_close(found @ found.mT, basis @ basis.mT, atol=1e-5, rtol=0)


def test_a_split_starts_from_what_was_found() -> None:
    found = torch.eye(8)[:, :2]
    split, feature = ChannelBasis(0.9, found=found), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    split.fit(feature)
    assert torch.equal(split.principal(feature)[..., :2], feature[..., :2])
    assert float(split.principal(feature)[..., 2:].abs().max()) == 0


def latents(stack: Stack) -> torch.Tensor:
    return stack("a red ring", generator=torch.Generator().manual_seed(5), output_type="latent").images


def test_a_stack_finds_saves_and_uses_them(pipe: Any, tmp_path: Path) -> None:
    stack = Stack(pipe, steps=STEPS).cache("svd-published", interval=3, energy=0.8)
    with stack:
        own = latents(stack)
    bases = stack.fit_bases(PROMPTS, save=tmp_path / "bases.safetensors")
    assert not stack.applied and stack.passes[0].policy.split.found is bases
    (vectors,) = bases.vectors.values()
    width = stack.facts.width
    assert len(vectors) == width and 0 < vectors.shape[1] < width
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(vectors.shape[1]), atol=1e-4, rtol=0)
    with stack:
        offline = latents(stack)
    assert not torch.equal(own, offline)
    assert float((own - offline).norm() / own.norm()) < 0.1
    again = Stack(pipe, steps=STEPS).cache(
        "svd-published", interval=3, energy=0.8, bases=tmp_path / "bases.safetensors"
    )
    with again:
        assert torch.equal(latents(again), offline)
    assert "fitted-elsewhere" not in again.explain()
    rounded = again.undo().quantize("int8", min_features=64).explain()
    assert "the bases were found under another precision: sin(theta) at most" in rounded


def test_bases_of_another_model_are_refused(pipe: Any) -> None:
    foreign = Bases("flux", 99, 7, {"image": torch.eye(7)})
    with pytest.raises(StackError, match=r"the bases were fitted on flux with 99 blocks of width 7, this is"):
        Stack(pipe, steps=STEPS).cache("svd-published", bases=foreign).apply()


def test_what_cannot_have_bases_is_told_so(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"principal subspace"):
        Stack(pipe, steps=STEPS).cache("taylorseer-published").fit_bases(PROMPTS)
    with pytest.raises(StackError, match=r"no bases in .*gone.*fit_bases"):
        load_bases(tmp_path / "gone.safetensors")
    with pytest.raises(StackError, match=r"no basis for 'text': found for image"):
        Bases("flux", 2, 4, {"image": torch.eye(4)}).of("text")
    assert Cache("svd-published").policy.split.found is None


def test_bases_are_carried_to_a_quantized_model_or_refreshed(pipe: Any) -> None:
    stack = Stack(pipe, steps=STEPS).cache("svd-published", energy=0.8)
    bases = stack.fit_bases(PROMPTS)
    assert bases.bits == (16, 16)
    (spectrum,) = bases.spectra.values()
    noise = rounding_floor(8, stack.facts.width)
    gram_noise = 2 * noise * spectrum[0] ** 0.5 + noise**2
    assert bases.turned(noise) == min(1.0, 2 * gram_noise / spectrum[1])

    wide = replace(bases, spectra={key: (0.5, 0.4) for key in bases.vectors})
    narrow = replace(bases, spectra={key: (0.5, 0.001) for key in bases.vectors})
    for found, life, words in ((wide, "request", "0.3 is carried"), (narrow, "warm", "refreshed on every full step")):
        quantized = Stack(pipe, steps=STEPS).quantize("int8", min_features=16).cache("svd-published", bases=found)
        assert quantized.plan.passes()[-1].policy.options()["basis_life"] == life
        assert words in quantized.explain()
    assert "the bases were found" not in Stack(pipe, steps=STEPS).cache("svd-published", bases=narrow).explain()


def test_the_angle_is_a_bound_on_what_quantization_does(pipe: Any) -> None:
    plain = Stack(pipe, steps=STEPS).cache("svd-published", energy=0.6)
    before = plain.fit_bases(PROMPTS)
    rounded = Stack(pipe, steps=STEPS).quantize("int8", min_features=16).cache("svd-published", energy=0.6)
    after = rounded.fit_bases(PROMPTS)
    assert after.bits == (8, 8)
    (key,) = before.vectors
    shared = min(before.vectors[key].shape[1], after.vectors[key].shape[1])
    cosines = torch.linalg.svdvals(before.vectors[key][:, :shared].mT @ after.vectors[key][:, :shared])
    assert float((1 - cosines.min().square()).clamp_min(0).sqrt()) <= before.turned(rounding_floor(8, 128)) + 1e-3


def test_spectra_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bases.safetensors"
    under = ("weight_bits=8", "activation_bits=32")
    Bases("flux", 2, 4, {"image": torch.eye(4)[:, :2]}, {"image": (0.7, 0.2)}, made_under=under).save(path)
    read = load_bases(path)
    assert dict(read.spectra) == {"image": (0.7, 0.2)} and read.bits == (8, 16)
