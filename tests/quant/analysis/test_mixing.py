"""The cheapest mix of schemes: against every mix there is, and on cases that a greedy walk gets wrong."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.calibrate.quant import mixing
from stack.calibrate.quant.mixing import MixChoice, fewest_bytes, smallest_error
from stack.core.errors import StackError

choices = st.lists(st.builds(MixChoice, st.just("s"), st.integers(1, 60), st.floats(1e-6, 1.0)), min_size=1, max_size=4)
layers = st.lists(choices, min_size=1, max_size=5).map(lambda every: {str(i): c for i, c in enumerate(every)})


def every(options: dict[str, list[MixChoice]]) -> list[tuple[int, float]]:
    """(bytes, squared error) of every mix."""
    return [(sum(c.bytes for c in mix), sum(c.error for c in mix)) for mix in itertools.product(*options.values())]


@settings(deadline=None, max_examples=150)
@given(options=layers, share=st.floats(0, 1))
def test_the_least_error_is_that_of_brute_force(options: dict[str, list[MixChoice]], share: float) -> None:
    mixes = every(options)
    low, high = min(b for b, _ in mixes), max(b for b, _ in mixes)
    limit = int(low + share * (high - low))
    found = smallest_error(options, limit)
    assert found.bytes <= limit
    assert found.error**2 == pytest.approx(min(e for b, e in mixes if b <= limit))


@settings(deadline=None, max_examples=150)
@given(options=layers, share=st.floats(0, 1))
def test_the_fewest_bytes_are_those_of_brute_force(options: dict[str, list[MixChoice]], share: float) -> None:
    mixes = every(options)
    low, high = min(e for _, e in mixes), max(e for _, e in mixes)
    limit = math.sqrt(low + share * (high - low)) * (1 + 1e-9)
    found = fewest_bytes(options, limit)
    assert found.error <= limit * (1 + 1e-9)
    assert found.bytes == min(b for b, e in mixes if e <= limit**2)


def ladder(scale: float) -> list[MixChoice]:
    """What a layer of this weight in the output really offers: bits against error, four times less for each."""
    return [MixChoice(f"{bits}", 10 * bits, scale * 4.0**-bits) for bits in (3, 4, 5, 8)]


def test_sensitive_layers_get_the_bits() -> None:
    options = {f"{i}": ladder(scale) for i, scale in enumerate((1.0, 0.3, 7.0, 0.02, 2.0, 1.5))}
    found = smallest_error(options, 240)
    assert found.bytes <= 240
    assert int(found.layers["2"]) > int(found.layers["0"]) > int(found.layers["3"])


def test_many_layers_are_thinned_out_and_still_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 layers of sizes that hardly ever sum up alike: a front of 200 comes within 2 % of one of 8192."""
    sizes = [1000 + 37 * i * i for i in range(40)]
    options = {
        f"{i}": [MixChoice(f"{b}", size * b, (1 + i % 7) * 4.0**-b) for b in (2, 3, 4, 5, 8)]
        for i, size in enumerate(sizes)
    }
    limit = 4 * sum(sizes)
    fine = smallest_error(options, limit)
    monkeypatch.setattr(mixing, "FRONT", 200)
    coarse = smallest_error(options, limit)
    assert coarse.bytes <= limit
    assert fine.error <= coarse.error <= 1.02 * fine.error


def test_what_cannot_be_met_is_refused_with_the_best_there_is() -> None:
    options = {"a": ladder(1.0)}
    with pytest.raises(StackError, match="the least is 30 bytes, asked for at most 29 bytes"):
        smallest_error(options, 29)
    with pytest.raises(StackError, match=r"the least is an error of 0\.0039, asked for at most 0\.0010"):
        fewest_bytes(options, 0.001)
    with pytest.raises(StackError, match="expected some layers"):
        smallest_error({}, 10)
