from __future__ import annotations

from typing import Any

import pytest
from cachebench.assemble import matcher
from cachebench.masks import growing, same_work, uniform
from cachebench.rows import Row
from cachebench.screening import best_settings, refused, stand_ins


def tried(row: str, full: int, work: float, psnr: float | None, family: str = "f") -> dict[str, Any]:
    line = {"row": row, "family": family, "group": "g", "full": full, "work": work, "psnr": psnr}
    return line if psnr is not None else {"row": row, "family": family, "group": "g", "note": "not supported by f: no"}


def test_each_family_is_represented_by_its_best_at_each_count() -> None:
    lines = [
        tried("weak", 9, 0.3, 30.0), tried("strong", 9, 0.5, 40.0), tried("one more", 10, 0.5, 39.0),
        tried("quick", 5, 0.18, 25.0), tried("slow", 20, 0.6, 70.0), tried("broken", 9, 0.1, None),
    ]  # fmt: skip
    chosen = {name: line["row"] for name, line in best_settings(lines, (12, 9), 50).items()}
    # At 12 full steps nothing fits; no more work than 12 or 9 of 50 has only the quick one, named once.
    assert chosen == {"f, work of 12 (best of 5)": "quick", "f, 9 (best of 5)": "strong"}


def test_a_family_that_reaches_no_count_shows_its_least_work() -> None:
    lines = [tried("a", 29, 0.80, 50.0), tried("b", 20, 0.60, 41.0), tried("c", 20, 0.601, 44.0)]
    assert {n: line["row"] for n, line in best_settings(lines, (9,), 50).items()} == {"f, own pace (best of 3)": "c"}


def test_a_family_that_never_ran_says_why() -> None:
    lines = [
        tried("a", 9, 0.2, None),
        tried("b", 9, 0.2, None),
        tried("c", 9, 0.2, 30.0, "g"),
        tried("d", 9, 0.2, None, "g"),
    ]
    assert refused(lines) == {"f": "not supported by f: no"}


def test_stand_ins_run_what_was_chosen_under_its_new_name() -> None:
    rows = [Row(name, "g", "f", {"is": name}, lambda: None) for name in ("a", "b")]  # type: ignore[arg-type,return-value]  # never run
    (chosen,) = stand_ins(rows, {"f, 9": tried("b", 9, 0.2, 30.0)})
    assert (chosen.name, chosen.settings, chosen.using) == ("f, 9", {"is": "b"}, rows[1].using)


def test_names_are_matched_whole() -> None:
    wanted = matcher(("svd*", "10 steps, *"))
    names = ("svd, 9", "svd calibrated, 9", "10 steps, euler", "12 steps, euler", "x svd")
    assert [wanted(name) for name in names] == [True, True, True, False, False]
    assert matcher(())("anything")


@pytest.mark.parametrize("full", [12, 10, 9, 8])
def test_masks_have_their_count_and_begin_full(full: int) -> None:
    for mask in (uniform(full, 50), growing(full, 50)):
        assert len(mask) == 50 and sum(mask) == full and mask[:3] == [1, 1, 1]
    gaps = [len(run) for run in "".join(map(str, growing(full, 50))).strip("1").split("1")]
    assert gaps == sorted(gaps) and growing(full, 50)[-1] == 1


def test_growing_masks_keep_their_count_on_short_runs() -> None:
    assert [sum(growing(full, 14)) for full in (3, 4, 5, 8)] == [3, 4, 5, 8]


def test_masks_of_the_same_work_have_fewer_full_steps() -> None:
    assert same_work(12, 50, 1 / 6) == 4  # 4 full and 46 at a sixth: the work of 11.7
    assert same_work(12, 50, 1 / 3) == 0 == same_work(12, 50, 1.0)
