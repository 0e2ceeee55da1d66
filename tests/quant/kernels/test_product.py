"""Int8 products against integer arithmetic."""

from __future__ import annotations

from itertools import product as pairs

import pytest
import torch

from stack.core.errors import StackError
from stack.core.facts import Machine, machine_of
from stack.quant.kernels import product as kernels
from stack.quant.kernels.product import Kernel, check_exact, kernel_for, pack, product
from stack.quant.kernels.rows import ROW_LEVELS, ZERO

HERE = kernel_for(machine_of(torch.device("cpu")))
KERNELS = [HERE, Kernel("int_mm", 127, "portable")]


def operands(kind: str, rows: int, inner: int, outer: int, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed rows (rows, inner) and a weight (outer, inner) as int64, at the ends of their ranges."""
    if kind == "random":
        generator = torch.Generator().manual_seed(rows * inner + outer)
        x = torch.randint(-ROW_LEVELS, ROW_LEVELS + 1, (rows, inner), generator=generator)
        return x, torch.randint(-levels, levels + 1, (outer, inner), generator=generator)
    signs = torch.where(torch.arange(inner) % 2 == 0, 1, -1) if kind == "alternating" else torch.ones(inner).long()
    x = (signs * ROW_LEVELS).expand(rows, inner)
    return x, (signs * (-levels if kind == "opposite" else levels)).expand(outer, inner)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("kind", ["random", "largest", "alternating", "opposite"])
def test_products_are_exact_at_the_ends_of_the_range(kernel: Kernel, kind: str) -> None:
    for rows, (inner, outer) in pairs((1, 5, 16, 17, 33), ((1, 1), (3, 5), (64, 48), (191, 193), (768, 32))):
        x, weight = operands(kind, rows, inner, outer, kernel.weight_levels)
        packed = pack(kernel, weight.to(torch.int8).contiguous(), torch.ones(outer))
        got = product((x + ZERO).to(torch.uint8), packed)
        error = (got.double() - (x @ weight.T)).abs().max()
        assert error <= 1, f"{kind} {rows}x{inner}x{outer}: off by {error}"  # float32 holds integers up to 2^24


def test_a_machine_without_vnni_gets_fewer_weight_levels() -> None:
    """255 * 2 * levels is what the 16-bit sums must hold."""
    plain, vnni = kernel_for(Machine("cpu", "AVX2")), kernel_for(Machine("cpu", "AVX512", vnni=True))
    assert (plain.weight_levels, vnni.weight_levels) == (64, 127)
    assert 255 * 2 * plain.weight_levels <= 32767 < 255 * 2 * (plain.weight_levels + 1) + 255
    assert kernel_for(Machine("cpu", "DEFAULT")).name == kernel_for(Machine("cuda", "GPU")).name == "int_mm"


def test_a_kernel_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exact(HERE)
    exact = kernels.product
    # One unit too little in one place, as a saturating sum of 16 bits gives.
    monkeypatch.setattr(kernels, "product", lambda values, packed: exact(values, packed) - torch.eye(32, 64))
    with pytest.raises(StackError, match="int8 product on this machine"):
        check_exact(HERE)
