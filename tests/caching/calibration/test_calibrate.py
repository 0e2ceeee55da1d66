from __future__ import annotations

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.candidate import Candidate
from stack.calibration import schedule_search
from stack.calibration.goals import Goal, count_in
from stack.calibration.observe import Observe
from stack.calibration.progress import BestSoFar
from stack.calibration.rehearse import Abandoned, Rehearsal, history
from stack.calibration.time_budget import SearchBudget
from stack.calibration.trials import Times, Trials
from stack.compat.calibrated_for import conditions
from stack.measure.metrics import mean_psnr, psnr

from ...conftest import PROMPT, picture, tiny_pipe

STEPS = 14
OTHERS = ["a green circle", "a cyan star on a white background"]


def test_psnr_of_known_pictures() -> None:
    zero = torch.zeros(2, 3, 4, 4)
    assert psnr(zero + 0.1, zero) == pytest.approx(20.0, abs=1e-4)
    assert psnr(zero, zero) == 99.0


def test_calibration_beats_the_uniform_start_and_stays_in_the_stack() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    stack = Stack(pipe, steps=STEPS).cache("svd-published", interval=4, warmup=2)
    found = stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4, trials=20, progress=False)
    assert found.trials <= 20 and len(found.full_steps) == 4 and found.full_steps[0] == 0
    assert found.psnr_db >= found.start_psnr_db
    picture(stack, STEPS)
    assert [r.step for r in stack.report().steps if r.kind == "full"] == list(found.full_steps)
    # The figure it reports is the figure one measures.
    exact = Stack(pipe, steps=STEPS)
    kept = picture(stack, STEPS, prompt=[PROMPT, OTHERS[0]], seed=0)
    stack.undo()
    uncached = picture(exact, STEPS, prompt=[PROMPT, OTHERS[0]], seed=0)
    exact.undo()
    assert mean_psnr(kept, uncached) == pytest.approx(found.psnr_db, abs=0.01)
    assert torch.equal(picture(pipe, STEPS), before)


def test_a_search_that_time_cuts_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, held = Stack(tiny_pipe(), steps=STEPS).cache("svd-published", interval=4, warmup=2), OTHERS[1:]
    with monkeypatch.context() as patch:
        patch.setattr(SearchBudget, "left", lambda self, share=1.0: False)
        short = stack.calibrate([PROMPT, OTHERS[0]], held, full_steps=4, trials=20, progress=False)
    assert short.hurried and short.trials == 1
    assert "time for 1 trial only, give it more seconds" in str(short)
    asked = stack.calibrate([PROMPT, OTHERS[0]], held, full_steps=4, trials=3, progress=False)
    assert asked.trials == 3 and not asked.hurried and "quieter" not in str(asked)  # as many as were asked for


@pytest.mark.parametrize(
    ("prompts", "held_out", "full", "words"),
    [
        ([PROMPT], OTHERS, 4, "at least 2 prompts"),
        ([PROMPT, OTHERS[0]], [], 4, "1 held out"),
        ([PROMPT, OTHERS[0]], [PROMPT], 4, "must not be among"),
        ([PROMPT, OTHERS[0]], OTHERS[1:], 1, r"2\.\.13"),
        ([PROMPT, OTHERS[0]], OTHERS[1:], 14, r"2\.\.13"),
    ],
)
def test_what_it_cannot_calibrate_on(prompts: list[str], held_out: list[str], full: int, words: str) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd-published")
    with pytest.raises(StackError, match=words):
        stack.calibrate(prompts, held_out, full_steps=full, progress=False)


def test_what_has_no_pace_is_not_calibrated() -> None:
    with pytest.raises(StackError, match="neither a schedule nor a threshold"):
        Stack(tiny_pipe(), steps=STEPS).cache("fastcache-published-merge").calibrate(
            [PROMPT, OTHERS[0]], OTHERS[1:], min_psnr=30.0
        )


def test_without_a_cache_or_a_pipeline() -> None:
    pipe = tiny_pipe()
    with pytest.raises(StackError, match="expected a stack with a cache"):
        Stack(pipe, steps=STEPS).calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4)
    with pytest.raises(StackError, match="got a bare denoiser"):
        Stack(pipe.transformer, steps=STEPS).cache("svd-published").calibrate(
            [PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4
        )


def trials_of(site: str = "output") -> Trials:
    cache = Cache("svd-published", site=site)
    return Trials(Stack(tiny_pipe(), steps=STEPS).add(cache), cache, [PROMPT, OTHERS[0]], STEPS, 0)


@pytest.mark.parametrize("site", ["output", "residual", "x0"])
def test_a_rehearsal_draws_the_pictures_of_the_cache_itself(site: str) -> None:
    trials = trials_of(site)
    candidates = [
        Candidate((0, 4, 8, 11)),
        Candidate((0, 4, 8, 12)),
        Candidate((0, 4, 7, 12), gains=(1.0, 0.5)),
        Candidate((0, 4, 7, 12), gains=(1.0, 0.5), segments=(1.0, 0.5, 1.5, 1.2)),
        Candidate((0, 4, 8, 11), order=2),
        Candidate((0, 4, 8, 11)),
        Candidate((0, 4, 8, 11), corrected=True),
        Candidate((0, 4, 8, 12), corrected=True),
    ]
    for candidate in candidates:
        rehearsed = trials.undisturbed(candidate)
        drawn = trials.run(trials.cache.calibrated(candidate, STEPS))
        # What the blocks add is remembered as it is rounded.
        torch.testing.assert_close(rehearsed, drawn, rtol=0, atol=1e-6 if site == "residual" else 0)
    # Shared: (0, 4, 8) of the second; 0 alone of the others, whose forecasts differ; (0, 4) of the segments' first one;
    # everything of the last one that is not corrected, as long as it is remembered; (0, 4, 8) of the last.
    assert trials.shared.remembered + trials.shared.computed == 4 * len(candidates)
    assert trials.shared.remembered >= 3 + 1 + 2 + 1 + 2 + 1 + 3


def test_what_a_feature_depends_on() -> None:
    one, other = Candidate((0, 1, 5, 9)), Candidate((0, 1, 5, 8))
    assert history(one, 5) == history(other, 5) != history(Candidate((0, 1, 5, 9), gains=(1.0, 0.0)), 5)
    assert history(one, 1) == history(Candidate((0, 1, 7), order=2), 1)  # nothing has been forecast yet
    early, late = Candidate((0, 1, 5, 9), segments=(1, 2, 1, 1)), Candidate((0, 1, 5, 9), segments=(1, 1, 1, 2))
    assert history(one, 9) == history(late, 9) != history(early, 9)


def test_a_corrected_trial_is_never_given_up_and_finishes_as_it_is() -> None:
    trials = trials_of()
    good, bad = Candidate((0, 2, 5, 8, 11)), Candidate((0, 1, 2, 3, 13), gains=(0.0, 0.0), corrected=True)
    trials.score(good)
    assert trials.score(bad) == pytest.approx(mean_psnr(trials.undisturbed(bad), trials.target))


def test_a_calibration_tries_the_corrector_and_keeps_it_where_it_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trials, "score", lambda self, candidate: 40.0 if candidate.corrected else 20.0)
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd-published")
    found = stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4, trials=10, progress=False)
    cache = next(p for p in stack.passes if isinstance(p, Cache))
    assert cache.policy.corrected and cache.measured["corrected"] is True and ", corrected" in str(found)


def test_a_trial_that_has_gone_astray_is_given_up() -> None:
    trials = trials_of()
    good, bad = Candidate((0, 2, 5, 8, 11)), Candidate((0, 1, 2, 3, 13), gains=(0.0, 0.0))
    true = mean_psnr(trials.undisturbed(bad), trials.target)
    best = trials.score(good)
    with pytest.raises(Abandoned):
        trials.run(Observe(Rehearsal(trials.cache.calibrated(bad, STEPS), bad, trials.shared).put_on))
    assert trials.score(bad) < best - 6.0 and true < best - 3.0
    assert mean_psnr(trials.run(trials.cache.calibrated(good, STEPS)), trials.target) == pytest.approx(best)


def test_as_few_full_steps_as_reach_a_psnr() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd-published")
    known = stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=6, trials=6, progress=False)
    found = stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], min_psnr=known.psnr_db - 0.5, trials=24, progress=False)
    assert found.psnr_db >= known.psnr_db - 0.5 and len(found.full_steps) <= 7
    with pytest.raises(StackError, match="no schedule reached 98 dB"):
        stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], min_psnr=98.0, trials=4, progress=False)
    assert next(p for p in stack.passes if isinstance(p, Cache)).full_steps == found.full_steps


def test_as_many_full_steps_as_fit_a_time() -> None:
    times = Times(full=0.1, cached=0.001, uncached=5.0)
    assert count_in(1.0, times, 50) == 9  # 9 * 0.1 + 41 * 0.001 = 0.94; 10 take 1.04
    with pytest.raises(StackError, match=r"the uncached run takes 5\.00 s"):
        count_in(6.0, times, 50)
    with pytest.raises(StackError, match=r"2 of 50 full steps take 0\.25 s"):
        count_in(0.2, times, 50)


def test_one_goal_at_a_time() -> None:
    got = "got full_steps=9 and min_psnr=40"
    with pytest.raises(StackError, match=f"one of full_steps, min_psnr and max_seconds, {got}"):
        Goal(9, 40.0)
    with pytest.raises(StackError, match="must be positive"):
        Goal(min_psnr=-1.0)


def test_a_calibration_holds_for_the_stack_it_was_made_on() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=STEPS).cache("svd-published")
    stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4, trials=3, progress=False, learn="off")
    cache = next(p for p in stack.passes if isinstance(p, Cache))
    stack.undo()
    assert cache.policy.calibrated_for == conditions(stack.facts)
    assert not Stack(pipe, steps=STEPS).add(cache).plan.findings

    quantized = Stack(pipe, steps=STEPS).quantize("int8").add(cache).plan
    notes = [f for f in quantized.findings if f.stage == "cache"]
    assert [f.rule for f in notes] == ["calibrated-at-other-precision"]
    words = "other precision or sparsity, schedule kept: weight_bits 32, now 8; activation_bits 32, now 8"
    assert notes[0].what == f"calibrated under {words}"
    assert quantized.passes()[-1] == cache

    tokens = tuple(entry.replace("image_tokens=64", "image_tokens=256") for entry in cache.policy.calibrated_for)
    elsewhere = Stack(pipe, steps=STEPS).add(cache.changed(calibrated_for=tokens))
    finding, even = elsewhere.plan.findings
    assert even.rule == "even-steps"
    assert "calibrated for another stack: image_tokens 256, now 64" in finding.what
    assert "calibrate again" in finding.repair
    (planned,) = elsewhere.plan.passes()
    assert isinstance(planned, Cache) and not planned.full_steps
    with pytest.raises(StackError, match="calibrated for another stack"):
        _ = Stack(pipe, steps=STEPS, strict=True).add(cache.changed(calibrated_for=tokens)).plan


def test_time_kept_for_gains_goes_to_moves_where_no_gains_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(SearchBudget):
        def left(self, share: float = 1.0) -> bool:
            return share == 1.0  # the share of moves has passed

    def tried(fitted: bool) -> int:
        monkeypatch.setattr(schedule_search, "refinable", lambda candidate: fitted)
        budget = Late(60, 60.0)
        with BestSoFar(budget, False) as bar:
            search = schedule_search.ScheduleSearch(trials_of(), budget, bar)
            found, _ = search.reach(Goal(full_steps=4))
        return len(found.trials)

    monkeypatch.setattr(schedule_search, "refined", lambda best, pictures, target: best)
    # A round of moves is each of the three later full steps one to the right and to the left at least.
    assert tried(fitted=False) >= tried(fitted=True) + 5
