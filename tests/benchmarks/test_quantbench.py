"""The quantization benchmark's targets and page, from rows made up here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantbench.denoisers import errors_by_sigma
from quantbench.page import page
from quantbench.targets import denoiser_targets, linear_targets


def linear(name: str, ms: float, width: int = 512) -> dict[str, Any]:
    return {"width": width, "tokens": 1024, "linears": name, "ms": ms, "over bf16": 16 / ms, "bytes over bf16": ms / 20}


def denoiser(name: str, ms: float, **more: Any) -> dict[str, Any]:
    row = {
        "model": "shapes",
        "variant": name,
        "ms": ms,
        "of the limit": None,
        "worst error": 0.5,
        "error by sigma": [1.0],
    }
    return {**row, **more}


def by_name(targets: list[Any]) -> dict[str, Any]:
    return {target.name: target for target in targets}


def test_linears_are_judged_at_their_worst_size() -> None:
    rows = [linear("int8 native", 8), linear("int8 native", 10, 768), linear("int8 torchao compiled", 12, 768)]
    rows += [linear("int8 quanto (fixed scales)", 15, 768), linear("nf4 native", 7), linear("int8-weight torchao", 1)]
    found = by_name(linear_targets(rows))
    gain = found["int8 native: linears over bf16, worst size"]
    assert (gain.value, gain.target, gain.met) == (1.6, 1.6, True)
    lead = found["bare linears: our int8 over the fastest library's, worst case"]
    assert lead.value == pytest.approx(1.2) and lead.met
    assert found["nf4: bytes over bf16, by storage"].value == 0.35 and not found["nf4: bytes over bf16, by storage"].met
    assert found["int8: bytes over bf16, by storage"].met


def test_denoisers() -> None:
    rows = [
        denoiser("int8", 10, **{"of the limit": 0.95, "worst error": 0.03, "accuracy": 0.9, "base accuracy": 0.905}),
        denoiser("int8 compiled", 8, **{"of the limit": 0.8}),
        denoiser("int8 bitsandbytes", 6),
        denoiser("nf4", 1),
    ]
    found = by_name(denoiser_targets(rows))
    assert found["shapes, int8: share of Amdahl's limit"].met
    assert not found["shapes, int8 compiled: share of Amdahl's limit"].met
    assert not found["shapes, int8: error in the worst sigma bin"].met
    assert found["shapes, int8: accuracy lost"].met
    assert found["whole denoisers: our int8 over the fastest library's, worst case"].value == 0.75


def test_errors_are_pooled_over_each_part_of_the_schedule() -> None:
    wanted = [torch.full((4,), 2.0) for _ in range(10)]
    got = [x * (1 + 0.01 * (i // 2)) for i, x in enumerate(wanted)]
    assert errors_by_sigma(got, wanted) == pytest.approx([0, 0.01, 0.02, 0.03, 0.04], abs=1e-6)
    assert errors_by_sigma(got[-1:], wanted[-1:]) == pytest.approx([0.04], abs=1e-6)


def test_the_page_shows_every_row_and_target() -> None:
    target = {"name": "t", "value": 1.234, "op": ">=", "target": 2.0, "met": False}
    record = {
        "machine": {"device": "cpu", "threads": 1},
        "linears": [linear("bf16", 16)],
        "denoisers": [],
        "targets": [target],
    }
    text = page(record)
    assert "| bf16 | 16 | 1 |" in text and "| t | 1.23 | >= 2 | **missed** |" in text and "not measured" in text
    assert "error by sigma" not in page({**record, "denoisers": [denoiser("int8", 3.0)]})
