"""Which tokens are computed: the same for every guidance branch, the long-cached ones first, as many as the budget."""

from __future__ import annotations

import pytest
import torch

from .rig import FF, FF_TEXT, IMAGE, JOINT, TEXT, Rig, changed


@pytest.mark.parametrize("select", ["random", "values"])
def test_both_guidance_branches_compute_the_same_tokens(select: str) -> None:
    rig, touched, states = Rig(ratio=0.25, select=select), {}, {}
    for step in (0, 1, 2):
        for branch in ("cond", "uncond"):
            before = states.get(branch)
            rig.call(step, branch)
            states[branch] = rig.snapshot()
            if before:
                touched[step, branch] = changed(before[FF], rig.kept[FF])
    for step in (1, 2):
        assert touched[step, "cond"] == touched[step, "uncond"] and len(touched[step, "cond"]) == 16
    assert touched[1, "cond"] != touched[2, "cond"]


def test_values_choose_other_tokens_than_chance_and_each_sample_its_own() -> None:
    rows = {}
    for select in ("random", "values"):
        rig = Rig(ratio=0.25, select=select)
        rig.call(0, batch=2)
        before = rig.snapshot()
        rig.call(1, batch=2)
        rows[select] = [changed(before[FF][i : i + 1], rig.kept[FF][i : i + 1]) for i in range(2)]
        assert not rig.controller.journal.warnings
    assert rows["random"][0] == rows["random"][1] != rows["values"][0] != rows["values"][1]


@pytest.mark.parametrize("grid", [(8, 8), (16, 4), (4, 4, 4)])
def test_the_grid_bonus_spreads_the_tokens(grid: tuple[int, ...]) -> None:
    rig = Rig(ratio=0.25, grid=(2, 5.0))
    rig.grid = grid
    rig.call(0)
    before = rig.snapshot()
    rig.call(1)
    rows = torch.tensor(changed(before[FF], rig.kept[FF]))
    places = torch.stack(torch.unravel_index(rows, (64 // grid[-2] // grid[-1], *grid[-2:])), 1)
    slots = {(frame, row // 2, column // 2) for frame, row, column in places.tolist()}
    assert len(slots) == len(rows) == 16


def test_without_a_grid_there_is_no_bonus_and_it_is_said() -> None:
    outs = []
    for options in ({"grid": (2, 5.0)}, {}):
        rig = Rig(ratio=0.25, **options)
        rig.grid = ()
        rig.call(0)
        outs.append(rig.call(1))
    assert torch.equal(*outs)
    rig = Rig(ratio=0.25, grid=(2, 5.0))
    rig.grid = ()
    rig.call(0)
    rig.call(1)
    assert rig.controller.journal.warnings == ["the tokens lie on no known grid: no bonus for cells of 2 x 2"]


def test_in_the_end_every_token_is_computed() -> None:
    rig = Rig(interval=13, ratio=0.25, stale=13.0)
    rig.call(0)
    before = rig.snapshot()
    for step in (1, 2, 3, 4):
        rig.call(step)
    assert all(len(changed(before[key], rig.kept[key])) == before[key].shape[1] for key in (FF, FF_TEXT, JOINT))


def test_a_step_ages_every_token_once_however_many_branches_it_has() -> None:
    rig = Rig(ratio=0.25)
    for step in (0, 1, 2):
        for branch in ("cond", "uncond"):
            rig.call(step, branch)
    ages = rig.controller.shared[f"{FF}/ages"]
    assert int(ages.max()) == 2 and int((ages == 0).sum()) == 16


def test_a_full_step_forgets_the_waiting() -> None:
    rig = Rig(interval=3, ratio=0.25)
    for step in (0, 1, 2):
        rig.call(step)
    assert f"{FF}/ages" in rig.controller.shared
    rig.call(3)
    assert f"{FF}/ages" not in rig.controller.shared


def test_the_budget_knows_the_block_list() -> None:
    """FLUX: 0.4 R in double blocks, 1.6 R in single ones, and 1.5 times that in the first block of a list."""
    rig = Rig(ratio=0.25, budget="flux")
    rig.call(0)
    before = rig.snapshot()
    rig.call(1)
    counts = [len(changed(before[key], rig.kept[key])) for key in (FF, FF_TEXT, JOINT)]
    assert counts == [int(0.15 * IMAGE), int(0.15 * TEXT), int(0.6 * (IMAGE + TEXT))] == [9, 2, 48]


def test_the_halves_of_a_guided_batch_compute_the_same_tokens() -> None:
    for halves in (True, False):
        rig = Rig(ratio=0.25, select="values", halves=halves)
        rig.call(0, batch=4)
        before = rig.snapshot()
        rig.call(1, batch=4)
        rows = [changed(before[FF][i : i + 1], rig.kept[FF][i : i + 1]) for i in range(4)]
        assert (rows[0] == rows[2] and rows[1] == rows[3]) is halves
        assert rows[0] != rows[1]
