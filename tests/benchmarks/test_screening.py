from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cachebench.assemble import matcher
from cachebench.budcache import anneal, even
from cachebench.masks import growing, same_work, uniform
from cachebench.rows import Row
from cachebench.screening import best_settings, refused, stand_ins
from cachebench.seacache import latents_of
from cachebench.spectrum import fit_weights

from stack.reference.pipeline import patchify


def tried(row: str, full: int, work: float, median: float | None, family: str = "f") -> dict[str, Any]:
    line = {"row": row, "family": family, "group": "g", "full": full, "work": work, "median": median}
    return (
        line if median is not None else {"row": row, "family": family, "group": "g", "note": "not supported by f: no"}
    )


def test_each_family_is_represented_where_it_crosses_40_db_and_at_the_usual_count() -> None:
    lines = [
        tried("weak", 9, 0.3, 30.0), tried("strong", 9, 0.55, 39.0), tried("one more", 10, 0.3, 36.0),
        tried("quick", 5, 0.18, 25.0), tried("slow", 20, 0.6, 70.0), tried("enough", 12, 0.4, 41.0),
        tried("below", 12, 0.35, 38.0), tried("broken", 9, 0.1, None),
    ]  # fmt: skip
    chosen = {name: line["row"] for name, line in best_settings(lines, 9).items()}
    assert chosen == {
        "f, 9 (best of 7)": "strong", "f, at 40 dB (best of 7)": "enough", "f, quicker (best of 7)": "below",
    }  # fmt: skip


def test_a_family_that_never_reaches_40_db_shows_its_best() -> None:
    lines = [tried("a", 29, 0.80, 35.0), tried("b", 20, 0.60, 31.0)]
    assert {n: line["row"] for n, line in best_settings(lines, 9).items()} == {"f, at its best (best of 2)": "a"}


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


@pytest.mark.parametrize(("count", "trials"), [(9, 24), (2, 5)])
def test_annealing_keeps_its_budget_and_never_ends_below_its_start(count: int, trials: int) -> None:
    asked: list[tuple[int, ...]] = []

    def score(chosen: tuple[int, ...]) -> float:
        asked.append(chosen)
        return -sum(abs(step - 40) for step in chosen[1:]) / 10

    best, value = anneal(score, count, 50, trials)
    assert len(asked) == trials and asked[0] == even(count, 50)
    assert value == max(-sum(abs(step - 40) for step in chosen[1:]) / 10 for chosen in asked) and best in asked
    assert all(chosen[0] == 0 and len(set(chosen)) == count and max(chosen) < 50 for chosen in asked)
    assert value > score(even(count, 50)) and (best, value) == anneal(score, count, 50, trials)


def test_spectrums_fit_follows_a_polynomial_of_its_degree() -> None:
    nodes = np.array([1.0, 0.9, 0.7, 0.6, 0.4])
    weights = fit_weights(nodes, 0.3, degree=2, ridge=1e-9)
    assert weights @ (3 * nodes**2 - nodes + 2) == pytest.approx(3 * 0.09 - 0.3 + 2, abs=1e-5)
    shrunk = fit_weights(nodes, 0.3, degree=2, ridge=1e9)
    assert np.abs(shrunk).max() < 1e-6


def test_seacache_is_told_fluxs_latents_in_place() -> None:
    drawn = torch.randn(2, 3, 8, 8)
    (first, second) = latents_of(None, (), {"hidden_states": patchify(drawn)})
    assert torch.equal(first, drawn[0].unsqueeze(1)) and torch.equal(second, drawn[1].unsqueeze(1))
    clips = torch.randn(2, 3, 4, 8, 8)
    assert torch.equal(torch.stack(latents_of(None, (), {"hidden_states": clips})), clips)
