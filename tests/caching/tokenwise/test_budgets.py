from __future__ import annotations

from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.caching.tokenwise.budgets import BUDGETS, TokenBudget
from stack.caching.tokenwise.cycles import Cycle

DIT_BLOCKS = [layer / 27 for layer in range(28)]


def conservative(between: str) -> list[int]:
    return [i for i, kind in enumerate(Cycle(3, 1, between, "dit").kinds(50)) if kind == "c"]


def test_the_realised_ratio_of_dit() -> None:
    """R = 0.05: 0.148 of the tokens on average over DuCa's conservative steps, none early, 0.365 at the last one."""
    budget = BUDGETS["dit-ddim"]
    by_step = [mean(budget.ratio(0.05, step, 50, depth) for depth in DIT_BLOCKS) for step in conservative("ca")]
    assert mean(by_step) == pytest.approx(0.148, abs=5e-4)
    assert by_step[0] == 0 and by_step[-1] == pytest.approx(0.365, abs=5e-4)


def test_dit_computes_nothing_in_the_first_quarter() -> None:
    ratios = [BUDGETS["dit-ddim"].ratio(0.05, step, 50) for step in range(50)]
    assert not any(ratios[:12]) and all(ratios[13:])


@pytest.mark.parametrize(
    ("name", "mlp"), [("even", 1.0), ("dit-ddim", 2.5), ("dit-ddpm", 2.5), ("pixart", 1.6), ("open-sora", 1.495)]
)
def test_factor_of_the_mlp(name: str, mlp: float) -> None:
    """In the middle of the request and of the blocks both slopes are 1."""
    assert BUDGETS[name].ratio(0.1, 49 if BUDGETS[name].countdown else 50, 100, 0.5) == pytest.approx(0.1 * mlp)


def test_pixart_spends_early_and_dit_late() -> None:
    early, late = ([BUDGETS[n].ratio(0.2, step, 50, 0.5) for step in (2, 47)] for n in ("pixart", "dit-ddim"))
    assert early[0] > 8 * early[1] and late[0] == 0 < late[1]


def test_flux_spends_four_times_as_much_on_single_blocks() -> None:
    double, single = (mean(BUDGETS["flux"].ratio(0.1, 9, 50, i / 18, part) for i in range(19)) for part in (0, 1))
    assert (double, single) == (pytest.approx(0.04), pytest.approx(0.16))
    assert BUDGETS["flux"].ratio(0.1, 9, 50, 0, 1) == pytest.approx(3 * BUDGETS["flux"].ratio(0.1, 9, 50, 1, 1))


@given(
    st.builds(
        TokenBudget,
        step_slope=st.floats(-3, 3),
        countdown=st.booleans(),
        layer_slope=st.floats(-3, 3),
        bias=st.floats(0, 4),
        lists=st.lists(st.floats(0, 3), min_size=1, max_size=3).map(tuple),
    ),
    st.floats(0, 1),
    st.integers(1, 80),
    st.floats(0, 1),
    st.integers(0, 4),
    st.integers(1, 5000),
)
def test_a_budget_is_never_more_than_there_is(
    budget: TokenBudget, nominal: float, steps: int, depth: float, part: int, count: int
) -> None:
    for step in range(steps):
        assert 0 <= budget.tokens(count, nominal, step, steps, depth, part) <= count


def test_a_ratio_becomes_whole_tokens_rounded_down() -> None:
    assert [TokenBudget().tokens(10, nominal, 0, 50) for nominal in (0.0, 0.09, 0.1, 0.3, 0.39, 1.0)] == [
        0,
        0,
        1,
        3,
        3,
        10,
    ]
