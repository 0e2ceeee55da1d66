"""Corrections learnt from uncached runs: what they find, when they are used, and when they are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.corrector import OTHER_LEVELS
from stack.caching.learned import KINDS, Learned, applied, load_learned
from stack.calibration import choosing
from stack.calibration.held_out import HeldOut
from stack.calibration.learned_fit import Estimates, RollOut, fitted, learn, subspace
from stack.calibration.trials import Trials

from ...conftest import PROMPT, picture, tiny_pipe

STEPS, FULL = 14, 5
SEARCHED, HELD = [PROMPT, "a green circle"], ["a cyan star on a white background"]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stack_of(**options: Any) -> Stack:
    return Stack(tiny_pipe(), steps=STEPS).cache("svd", **{"count": FULL, **options})


def cache_of(stack: Stack) -> Cache:
    (cache,) = (p for p in stack.passes if isinstance(p, Cache))
    return cache


def taught(stack: Stack, kind: str) -> tuple[Cache, torch.Tensor, Trials]:
    """The stack's cache with corrections of a kind, and the roll-out's pictures."""
    cache, estimates = cache_of(stack), Estimates()
    trials = Trials(stack, cache, SEARCHED, STEPS, 3, beside=[estimates.put_on])
    made, pictures = learn(trials, cache, kind, estimates.x0)
    return made, pictures, trials


@pytest.fixture(scope="module", params=KINDS)
def learnt(request: pytest.FixtureRequest) -> tuple[Cache, torch.Tensor, torch.Tensor]:
    """A taught cache, the roll-out's pictures, and those of the cache in use."""
    stack = stack_of()
    made, pictures, trials = taught(stack, request.param)
    used = trials.run(made)
    stack.undo()
    return made, pictures, used


def test_the_map_of_a_drawn_linear_system_is_found() -> None:
    parts, made_of = [drawn(3, 40, 4, seed=1), drawn(3, 40, 4, seed=2)], drawn(8, 4, seed=3)
    found = fitted(parts, torch.cat(parts, -1) @ made_of, 0.0)
    assert torch.allclose(found, made_of, atol=1e-5)
    assert torch.allclose(applied(found, parts, torch.eye(4)), torch.cat(parts, -1) @ made_of, atol=1e-4)


def test_weights_of_a_forecast_are_found_call_by_call() -> None:
    parts, x0 = [drawn(2, 30, 3, seed=1), drawn(2, 30, 3, seed=2)], drawn(2, 30, 3, seed=3)
    truth = dict(enumerate([x0, x0 + 0.3 * parts[0] - 0.2 * parts[1], x0 + 0.5 * parts[0]]))
    rolled = RollOut("l2p", {"": truth}, torch.zeros(0, 0), ridge=0.0)
    for call in (1, 2):
        correction = rolled.correction(f"/0/{call}", parts, x0)
        assert correction is not None and torch.allclose(x0 + correction, truth[call], atol=1e-5)
    assert torch.allclose(rolled.forms["/0/1"], torch.tensor([0.3, -0.2]), atol=1e-5)
    assert torch.allclose(rolled.forms["/0/2"], torch.tensor([0.5, 0.0]), atol=1e-5)


def test_a_ridge_shrinks_by_its_own_size() -> None:
    part = drawn(1, 50, 1)
    assert fitted([part], 2 * part, 0.25).item() == pytest.approx(2 / 1.25, rel=1e-5)
    assert fitted([torch.zeros(1, 5, 1)], drawn(1, 5, 1), 0.1).item() == 0.0


def test_a_sample_gone_astray_does_not_decide() -> None:
    part, astray = drawn(3, 50, 1), torch.tensor([1.0, 1.0, -100.0])[:, None, None]
    by_size = fitted([part], astray * part, 0.0).item()
    # Weighted by 1 / (|t| + 0.3): (2 / 1.3^2 - 100 / 100.3^2) / (2 / 1.3^2 + 1 / 100.3^2), about.
    assert 0.9 < by_size < 1.0


def test_the_subspace_is_that_of_the_estimates() -> None:
    inside = torch.linalg.qr(drawn(6, 2)).Q
    basis = subspace({"a": {n: drawn(2, 30, 2, seed=n) @ inside.mT for n in (1, 2)}})
    assert basis.shape == (6, 2)
    assert torch.allclose(basis @ basis.mT, inside @ inside.mT, atol=1e-5)


def test_forms_are_of_every_gap_and_used_as_they_were_fitted(
    learnt: tuple[Cache, torch.Tensor, torch.Tensor],
) -> None:
    cache, rolled, used = learnt
    learned = cache.policy.learned
    assert learned is not None and len(learned.full_steps) == FULL
    full = learned.full_steps
    gaps = [(a, b) for a, b in pairwise(full) if b > a + 1]
    calls = {tuple(map(int, key.split("/")[1:])) for key in learned.forms}
    if learned.kind == "low-rank":
        assert calls == set(gaps)
    else:  # from the second full step on there is a difference to weigh
        ends = [*full, STEPS]
        assert calls == {(a, s) for a, b in pairwise(ends[1:]) for s in range(a + 1, b)}
    assert torch.equal(rolled, used)


def test_an_endless_ridge_is_the_default_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stack_of()
    for kind in KINDS:
        with monkeypatch.context() as patch:
            patch.setattr("stack.calibration.learned_fit.RIDGE", 1e30)
            made, rolled, trials = taught(stack, kind)
        assert made.policy.learned is not None and made.policy.learned.forms
        assert torch.equal(rolled, trials.run(made.changed(learned=None)))
    stack.undo()


def test_a_fit_gains_on_its_own_prompts() -> None:
    stack = stack_of()
    made, _, trials = taught(stack, "low-rank")
    own = HeldOut(trials, SEARCHED)
    own._seed, own.target = trials.seed, trials.target
    assert own.psnr(made) > own.psnr(made.changed(learned=None)) + 0.3
    assert own.wins(made, made.changed(learned=None))
    stack.undo()


def test_a_fit_that_loses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(trials: Trials, cache: Cache, kind: str, truth: Any) -> tuple[Cache, torch.Tensor]:
        made, pictures = learn(trials, cache, kind, truth)
        learned = made.policy.learned
        assert learned is not None
        forms = {key: -form for key, form in learned.forms.items()}
        return made.changed(learned=replace(learned, forms=forms)), pictures

    monkeypatch.setattr(choosing, "learn", worse)
    stack = stack_of()
    found = stack.calibrate(SEARCHED, HELD, full_steps=FULL, trials=1, budget=600.0, progress=False)
    assert not found.learned and cache_of(stack).policy.learned is None
    stack.undo()


def test_calibration_learns_what_is_asked_for() -> None:
    with pytest.raises(StackError, match="low-rank"):
        stack_of().calibrate(SEARCHED, HELD, full_steps=FULL, learn="lowrank")
    stack = stack_of()
    off = stack.calibrate(SEARCHED, HELD, full_steps=FULL, trials=1, budget=600.0, progress=False, learn="off")
    assert not off.learned and off.cache.policy.learned is None
    stack.undo()


def test_a_request_at_other_noise_levels_goes_without(learnt: tuple[Cache, torch.Tensor, torch.Tensor]) -> None:
    cache, _, _ = learnt
    learned = cache.policy.learned
    assert learned is not None
    plain = stack_of()
    expected = picture(plain, STEPS)
    plain.replace(cache.changed(learned=replace(learned, sigmas=tuple(s * 1.01 for s in learned.sigmas))))
    assert torch.equal(picture(plain, STEPS), expected)
    assert [w for w in plain.report().warnings if "noise levels" in w] == [OTHER_LEVELS]
    plain.replace(cache)
    assert not torch.equal(picture(plain, STEPS), expected)
    assert OTHER_LEVELS not in plain.report().warnings
    plain.undo()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 64}, "fitted on"),
        ({"made_under": ("weight_bits=8",)}, "another stack"),
        ({"full_steps": (0, 1, 2, 3, 4)}, "full steps"),
    ],
)
def test_corrections_of_something_else_are_left_out(
    learnt: tuple[Cache, torch.Tensor, torch.Tensor], change: dict[str, Any], words: str
) -> None:
    learned = learnt[0].policy.learned
    assert learned is not None
    stack = stack_of(learned=replace(learned, **change))
    findings = [finding for finding in stack.plan.findings if words in finding.what]
    assert len(findings) == 1 and "calibrate again" in findings[0].repair
    (planned,) = (p for p in stack.plan.passes() if isinstance(p, Cache))
    assert planned.policy.learned is None and planned.policy.corrected


def test_what_is_saved_is_read_back_exactly(learnt: tuple[Cache, torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    learned = learnt[0].policy.learned
    assert learned is not None
    learned.save(tmp_path / "learned.safetensors")
    read = load_learned(tmp_path / "learned.safetensors")
    assert (read.kind, read.full_steps, read.sigmas) == (learned.kind, learned.full_steps, learned.sigmas)
    assert read.made_under == learned.made_under and torch.equal(read.basis, learned.basis)
    assert read.forms.keys() == learned.forms.keys()
    assert all(torch.equal(read.forms[key], form) for key, form in learned.forms.items())
    assert isinstance(Cache("svd", learned=str(tmp_path / "learned.safetensors")).policy.learned, Learned)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no learned corrections in"):
        load_learned(tmp_path / "none.safetensors")
    odd = Learned("flux", 1, 8, "low-rank", (0, 2), (1.0, 0.5, 0.2), {"/0/2": torch.ones(3)}, torch.eye(2))
    odd.save(tmp_path / "odd.safetensors")
    with pytest.raises(StackError, match="expected a form of kind low-rank"):
        load_learned(tmp_path / "odd.safetensors")
