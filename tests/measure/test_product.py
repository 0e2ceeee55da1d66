"""Factors of the speedup, and the picture in which they multiply."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stack.comparison.contributions import factors
from stack.comparison.product import save_product
from stack.comparison.rows import ALL, BASE

STAGES = ["quantize", "sparse_attn", "cache"]
ROWS = [BASE, *STAGES, ALL, *(f"{ALL}-{stage}" for stage in STAGES)]
times = st.lists(st.floats(0.01, 1000), min_size=len(ROWS), max_size=len(ROWS))


def rows(seconds: list[float]) -> dict[str, dict[str, Any]]:
    return {name: {"seconds": s, "passes": STAGES} for name, s in zip(ROWS, seconds, strict=True)}


def independent(quantize: float, sparse: float, cache: float) -> list[float]:
    """Seconds of passes that multiply."""
    product = quantize * sparse * cache
    return [1 / f for f in (1.0, quantize, sparse, cache, product, sparse * cache, quantize * cache, quantize * sparse)]


def test_passes_that_multiply_have_their_own_factors() -> None:
    assert factors(rows(independent(1.1, 1.4, 9.0))) == pytest.approx({"quantize": 1.1, "sparse_attn": 1.4, "cache": 9})


@given(times)
def test_the_product_is_the_measured_speedup(seconds: list[float]) -> None:
    measured = rows(seconds)
    found = factors(measured)
    assert found is not None and list(found) == STAGES
    whole = math.log(measured[BASE]["seconds"] / measured[ALL]["seconds"])
    assert sum(map(math.log, found.values())) == pytest.approx(whole, abs=1e-6) or all(
        value == pytest.approx(1) for value in found.values()
    )


@pytest.mark.parametrize("gone", ROWS)
def test_without_a_row_or_its_time_there_are_none(gone: str) -> None:
    measured = rows(independent(1.1, 1.4, 9.0))
    assert factors({name: row for name, row in measured.items() if name != gone}) is None
    assert factors({**measured, gone: {**measured[gone], "seconds": None}}) is None


def test_the_picture_is_drawn_where_passes_can_multiply(comparison: Any, tmp_path: Path) -> None:
    measurement, record = comparison(None)
    pictures = {name: m.pictures for name, m in measurement.rows.items()}
    assert save_product(record, pictures, tmp_path / "product.png")
    image = Image.open(tmp_path / "product.png").convert("RGB")
    assert image.width == 1152 and len(image.getcolors(1 << 24) or []) > 50
    assert not save_product(record, {}, tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    record["rows"] = [row for row in record["rows"] if row["name"] != "all-cache"]
    assert not save_product(record, {BASE: torch.rand(1, 3, 8, 8)}, tmp_path / "none.png")
