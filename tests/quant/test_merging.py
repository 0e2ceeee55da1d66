"""An update merged into a rounded weight is rounded away; fused before, it survives: distill comes before quantize.

The figures are those measured for Gaussian weights of 1,024 x 1,024 and an update of rank 64.
"""

from __future__ import annotations

import pytest
import torch

from stack import Stack, StackError
from stack.quant.formats import load, store
from stack.quant.schemes import SCHEMES
from tests.conftest import tiny_denoiser
from tests.lora import save_lora


def rounded(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    return load(store(weight, SCHEMES[scheme]), torch.float32)


def present(effective: torch.Tensor, update: torch.Tensor) -> float:
    """Share of an update that a weight really moved by: 1 is all of it."""
    return float((effective * update).sum() / update.square().sum())


@pytest.mark.parametrize(
    ("scheme", "size", "merged"),
    [
        ("int8-weight", 0.003, 0.005),
        ("int8-weight", 0.01, 0.87),
        ("int8-weight", 0.03, 1.0),
        ("fp8-weight", 0.003, 0.11),
        ("fp8-weight", 0.01, 0.36),
        ("nf4", 0.003, 0.016),
        ("nf4", 0.01, 0.016),
        ("nf4", 0.03, 0.03),
    ],
)
def test_how_much_of_an_update_survives(scheme: str, size: float, merged: float) -> None:
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(1024, 1024)
    update = torch.randn(1024, 64) @ torch.randn(64, 1024)
    update *= size * weight.norm() / update.norm()
    base = rounded(weight, scheme)
    # Fused: the exact weight moves and is rounded then; the error of rounding does not look like the update.
    assert present(rounded(weight + update, scheme) - base, update) == pytest.approx(1.0, abs=0.06)
    assert present(rounded(base + update, scheme) - base, update) == pytest.approx(merged, abs=0.03)


def test_merging_into_a_rounded_weight_is_refused(tmp_path: object) -> None:
    denoiser = tiny_denoiser()
    save_lora(denoiser, tmp_path)
    with Stack(denoiser).quantize("nf4") as stack:
        stack.save(f"{tmp_path}/saved")
    loaded = Stack.load(f"{tmp_path}/saved", tiny_denoiser())
    with pytest.raises(StackError, match=r"not merged into the packed weights of .*switchable=True"):
        loaded.distill(str(tmp_path), merge=True).apply()
