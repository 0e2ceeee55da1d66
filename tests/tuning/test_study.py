"""What was tried stays in a database, and only goes on with the same question."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stack import StackError
from stack.tuning.limits import Limits
from stack.tuning.space import Space
from stack.tuning.study import CALIBRATED, Study, Tried

from .test_limits import figures

SPACE = Space(20, ("int8",), False, ("svd",), True, {})
LIMITS = Limits(min_psnr=40)


def run(study: Study, times: int) -> None:
    """Faster with fewer full steps, and below 40 dB under 5 of them."""
    for _ in range(times):
        trial, stages = study.ask(SPACE)
        count = stages.get("cache", {}).get("count", 0)
        made = figures(30 + 2.0 * count, 20 / count) if count else figures(20.0, 1.1)
        study.tell(trial, made, LIMITS.excess(made), LIMITS.cost(made), pruned=False)


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", "mine", {"steps": 20})
    study.begin(SPACE)
    run(study, 5)
    again = Study(tmp_path / "study.db", "mine", {"steps": 20})
    again.begin(SPACE)
    assert len(again.tried()) == 5
    run(again, 1)
    assert len(study.tried()) == 6
    known = again.tried()[0]
    assert again.same(known.stages) == known and again.same({"cache": {"count": 99}}) is None


def test_another_question_is_not_mixed_in(tmp_path: Path) -> None:
    Study(tmp_path / "study.db", "mine", {"steps": 20, "seed": 0})
    with pytest.raises(StackError, match="was made with other steps 20, now 30: give the same, or another file"):
        Study(tmp_path / "study.db", "mine", {"steps": 30, "seed": 0})


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database\n" * 100)
    with pytest.raises(StackError, match=r"cannot open the study in .*study\.db"):
        Study(tmp_path / "study.db", "mine", {})
    with pytest.raises(StackError, match="cannot open the study in"):
        Study(tmp_path / "no" / "such" / "folder.db", "mine", {})


def test_the_sampler_turns_to_the_fastest_within_the_limits(tmp_path: Path) -> None:
    """Five full steps are the fewest that reach 40 dB: 4.0x."""
    study = Study(tmp_path / "study.db", "mine", {}, seed=1)
    study.begin(SPACE)
    run(study, 40)
    within = [one for one in study.tried() if not one.excess]
    assert max(one.figures.speedup for one in within) == 4.0
    later = [one for one in study.tried()[20:] if "cache" in one.stages]
    assert len(later) >= 12  # the solver's 1.1x at 20 dB is left alone


def test_what_fails_or_is_interrupted_is_not_measured(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", "mine", {})
    trial, _ = study.ask(SPACE)
    study.refuse(trial, "out of memory")
    trial, stages = study.ask(SPACE)
    study.leave(trial)
    assert study.tried(True) == [] and study.refused == 1
    assert study.ask(SPACE)[1] == stages  # it comes up again
    trial, stages = study.ask(SPACE)
    half = figures(20.0, 2.0, samples=1)
    study.tell(trial, half, 0.5, math.log(0.5), pruned=True)
    assert study.tried() == [] and len(study.tried(True)) == 1


def test_a_calibrated_candidate_stands_beside_those_searched(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", "mine", {})
    one = Tried({"cache": {"full_steps": [0, 9, 15], "steps": 20}}, figures(41.0, 6.6), 0.0, CALIBRATED)
    study.add(one, -math.log(6.6))
    (kept,) = study.tried()
    assert kept == one
