"""What is asked of attention calls, orders and linear forms, from rows that are made up."""

from __future__ import annotations

import pytest
import torch
from attentionbench import call_rows, call_targets
from linear_limit import fitted
from order_pictures import targets_of


def test_only_the_length_that_is_asked_for_is_held_against_its_targets() -> None:
    rows = [
        {"tokens": tokens, "head": 64, "back end": back, "keep": keep, "speedup": 1.7, "map, of dense": 0.04}
        for tokens in (1024, 4096)
        for back in ("dense", "block-sparse")
        for keep in (0.75, 0.5, 0.25)
    ]
    found = call_targets(rows)
    assert [(target.value, target.target, target.met) for target in found] == [
        (1.7, 1.6, True), (0.04, 0.03, False), (1.7, 2.8, False), (0.04, 0.03, False)
    ]  # fmt: skip


def test_a_call_is_off_by_what_it_drops() -> None:
    dense, *sparse = call_rows(1024, 16)
    assert [row["work"] for row in (dense, *sparse)] == sorted((row["work"] for row in (dense, *sparse)), reverse=True)
    assert dense["error"] < 0.01 and sparse[-1]["error"] > 1.2 * dense["error"]
    assert all(row["speedup"] > 0 for row in sparse)


def test_an_order_is_held_against_raster_order_where_it_is_the_default() -> None:
    figures = {("raster", 0.5): (30.0, 0.7), ("raster", 0.4): (28.0, 0.6), ("by_head", 0.4): (31.0, 0.65)}
    rows = [
        {"tokens": tokens, "steps": steps, "keep": keep, "order": order, "dB": dB, "time": time}
        for tokens in (1024, 2304)
        for steps in (12, 5)
        for (order, keep), (dB, time) in figures.items()
    ]
    (better,) = targets_of(rows)
    assert better.value == pytest.approx(31.0 - 29.0) and better.met


def test_weights_of_a_linear_form_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [[torch.randn(2, 5, 3, generator=generator) for _ in range(2)] for _ in range(3)]
    truth = [0.5 * a - 2 * b + 0.25 * c for a, b, c in zip(*parts, strict=True)]
    assert fitted(parts, truth) == pytest.approx([0.5, -2.0, 0.25])
