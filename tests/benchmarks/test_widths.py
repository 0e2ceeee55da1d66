from __future__ import annotations

import pytest
from widths import ROWS, targets_at, widened

from stack.caching.methods import PRESETS

from ..conftest import tiny_denoiser
from .test_targets import line


def test_more_heads_of_the_same_size_are_a_wider_model() -> None:
    small = tiny_denoiser()
    wide, again = widened(small, 4), widened(small, 4)
    assert wide.config.attention_head_dim == small.config.attention_head_dim
    assert wide.proj_out.in_features == 4 * small.config.attention_head_dim
    assert wide.dtype == small.dtype and not wide.training
    assert all((a == b).all() for a, b in zip(wide.parameters(), again.parameters(), strict=True)), "the same weights"


def test_its_targets_are_those_of_the_cache_benchmark_at_each_width() -> None:
    assert {*ROWS} <= {*PRESETS} and ROWS["svd-published"] == {"interval": 7}
    rows = [
        line("svd", "preset", 5.4, 40.0) | {"settings": {"interval": 7}},
        line("duca", "preset", 4.8, 40.0, work=0.2),
    ]
    (kept, off) = targets_at(rows, 12, 50)
    assert kept.name == "12 heads, svd: speedup over 50 / 9" and kept.value == pytest.approx(0.972)
    assert off.name.startswith("12 heads, duca") and off.value == pytest.approx(1 / 0.96 - 1) and off.met
