from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from stack import Stack
from stack.caching.cache import Cache
from stack.caching.candidate import Candidate
from stack.calibration import choosing
from stack.calibration.held_out import PICTURES, SEARCHED, HeldOut, chosen_again, finalists, pictures_of_each
from stack.calibration.search import EARLY, spread
from stack.calibration.trials import Trials

from ...conftest import PROMPT, tiny_pipe

STEPS = 14
OTHERS = ["a green circle", "a cyan star on a white background"]
START = Candidate((0, 4, 8, 11))
LUCKY, NEXT = Candidate((0, 5, 8, 11), order=2), Candidate((0, 5, 8, 12), order=2)
SAFE = Candidate((0, 1, 2, 9))


def test_finalists_are_of_different_kinds() -> None:
    early = [replace(LUCKY, full_steps=spread(4, STEPS, power)) for power in EARLY]  # with the best one's forecast
    tried = [(START, 20.0), (LUCKY, 41.0), (NEXT, 40.9), (SAFE, 38.0)]
    # NEXT has its full steps where LUCKY has, as far as layouts go.
    assert finalists(tried, STEPS) == [LUCKY, SAFE, START, *early]
    assert all(c.full_steps[1] < START.full_steps[1] for c in early)
    many = [(START, 20.0), *((Candidate((0, k, 12, 13), segments=(2.0,)), 30.0 + k) for k in range(5, 11))]
    assert [c.full_steps[1] for c in finalists(many, STEPS)] == [10, 9, 8, 7, *(c.full_steps[1] for c in early), 4]
    assert not finalists(many, STEPS)[4].segments


def test_all_prompts_decide() -> None:
    known, away = {START: 20.0, LUCKY: 41.0, SAFE: 38.0}, {START: 21.0, LUCKY: 12.0, SAFE: 37.0}
    both = known.__getitem__, away.__getitem__
    assert chosen_again([START, LUCKY, SAFE], *both, weight=2.0) == (SAFE, 38.0, 3)
    away[LUCKY] = 32.0  # 2 x 41 + 32 and 2 x 38 + 37
    assert chosen_again([START, LUCKY, SAFE], *both, weight=2.0)[0] == LUCKY
    assert chosen_again([START, LUCKY, SAFE], *both, weight=1.0)[0] == SAFE
    assert chosen_again([LUCKY, SAFE, START], *both, weight=1.0, least=40.0) == (LUCKY, 41.0, 1)  # a PSNR was asked for
    assert chosen_again([LUCKY, SAFE, START], *both, weight=1.0, least=50.0) == (LUCKY, 41.0, 1)


@pytest.mark.parametrize(
    ("gains", "ahead"),
    [
        ((0.5,), True),
        ((-0.5,), False),
        ((1.0, 1.2), True),
        ((0.2, 3.0), False),  # a mean of 1.6 dB, which two pictures do not tell from nothing
        ((0.2, 3.0, 1.5, 1.7), True),
        ((4.0, -3.0, 2.0, -1.0), False),
    ],
)
def test_a_cache_is_ahead_by_more_than_chance(gains: tuple[float, ...], ahead: bool) -> None:
    old, new = Cache("svd"), Cache("svd", interval=3)
    target = torch.full((len(gains), 3, 4, 4), 0.5)
    off = {old: [30.0] * len(gains), new: [30.0 + gain for gain in gains]}
    asked: list[Cache] = []

    class Drawn:
        seed = 0

        def run(self, cache: Any, prompts: Any, seed: int) -> torch.Tensor:
            if cache not in off:  # the uncached run
                return target
            asked.append(cache)
            return torch.stack([one + 10 ** (-db / 20) for one, db in zip(target, off[cache], strict=True)])

    held = HeldOut(cast("Trials", Drawn()), [""] * len(gains))
    assert held.ahead(new, old) is ahead
    assert held.psnr(new) == pytest.approx(30 + sum(gains) / len(gains), abs=1e-3)
    assert asked == [new, old], "each cache runs once"


def test_few_prompts_are_drawn_several_times_where_there_is_time() -> None:
    assert [pictures_of_each(prompts, math.inf, 5.0) for prompts in (1, 2, 3, 4, 9)] == [6, 3, 2, 2, 1]
    assert [pictures_of_each(1, seconds, 5.0) for seconds in (30.0, 19.9, 9.9, 0.0)] == [6, 3, 1, 1]


def test_a_choice_that_held_out_prompts_refute_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd")
    prompts, held_out = [PROMPT, OTHERS[0]], OTHERS[1:]
    call_transforms = stack.calibrate(prompts, held_out, full_steps=4, trials=12, progress=False)
    assert call_transforms.compared == 0 and "chosen again" not in str(call_transforms)

    monkeypatch.setattr(choosing, "DISAGREE_DB", -99.0)  # whatever they say is taken for disagreement
    stack.replace(Cache("svd", interval=2))  # more full steps than asked for: no rival
    found = stack.calibrate(prompts, held_out, full_steps=4, trials=12, progress=False)
    assert 3 <= found.compared <= SEARCHED + len(EARLY) + 1
    assert f"chosen again among {found.compared}, as held-out prompts disagreed" in str(found)

    # Its figures are those one measures: on the prompts searched on, and on others with seeds that decided nothing.
    trials = Trials(stack, Cache("svd"), prompts, STEPS, 0)
    held = HeldOut(trials, held_out, check=2, times=PICTURES)
    assert held.psnr(found.cache) == pytest.approx(found.held_out_psnr_db, abs=0.01)
    assert len(held.each(found.cache)) == PICTURES
    assert held.psnr(found.cache) != pytest.approx(
        HeldOut(trials, held_out, times=PICTURES).psnr(found.cache), abs=0.01
    )
    # No worse over all prompts than what the search alone had chosen.
    first = HeldOut(trials, held_out, times=PICTURES)
    assert 2 * found.psnr_db + first.psnr(found.cache) >= (
        2 * call_transforms.psnr_db + first.psnr(call_transforms.cache) - 0.01
    )
