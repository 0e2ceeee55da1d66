"""Sparse attention on every class whose attention over the latent's tokens goes through torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from stack import Stack
from stack.attention import block_sparse, gathered
from stack.attention.kernels import gather_attention
from stack.attention.maps import Grid, keep_mask
from stack.attention.sparsity import FIRST, LAST, MASKED, SparsityPolicy
from stack.models.layout import numbered
from stack.models.small import Sizes

from .classes import CLASSES, LACKS, LEVELS, REFUSED, flat, made, same, some, wired

ROWS, COLUMNS = 16, 20  # of tokens: at least five key blocks of 64
OTHERS = {"HiDreamImageTransformer2DModel": (12, 12)}  # at most 144 in the small model
OTHERS |= dict.fromkeys(("DreamLiteUNetModel", "Kandinsky3UNet", "UNet2DModel"), (32, 32))  # attend on lower levels
NO_CALL = "no scaled_dot_product_attention over the sequence in"
MIXED = {  # some of the layers of one name attend to text, or are linear
    "Kandinsky3UNet": f"{NO_CALL} AttnProcessor2_0",
    "SanaWMTransformer3DModel": f"{NO_CALL} SanaWMBidirectionalGDNAttention",
}
DENSE = {"AceStepTransformer1DModel": MASKED}  # some of its layers attend in sliding windows
WITHOUT = [name for name, lacks in LACKS.items() if "attention" in lacks]
NAMES = [name for name in CLASSES if name not in WITHOUT and name not in REFUSED]


# Sums over all tokens before, one after the other, amplify the rounding of sums in another order.
RECURRENT = {"SanaWMTransformer3DModel"}


def sizes(name: str, level: float) -> Sizes:
    rows, columns = OTHERS.get(name, (ROWS, COLUMNS))
    return Sizes(frames=2, rows=rows, columns=columns, text=7, noise=level)


@torch.no_grad()
def outputs(model: Any, name: str) -> list[list[torch.Tensor]]:
    return [flat(model(**made(name).call(sizes(name, level)), return_dict=False)) for level in LEVELS]


@contextmanager
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Grid]]:
    """Sparse calls are held against attention under the boolean mask of their map, and answered by it."""
    grids: list[Grid] = []

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: Any, grid: Grid, *rest: Any) -> torch.Tensor:
        made = gather_attention(q, k, v, kept, grid, None, rest[1])
        heads = (x.transpose(1, 2) for x in (q, k, v))
        mask = keep_mask(kept, grid)
        if rest[1] is not None:
            mask = mask & rest[1][:, None, None]
        expected = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)
        close = {"atol": 1e-5, "rtol": 1e-4} if q.dtype == torch.float32 else {"atol": 1e-2, "rtol": 1.6e-2}
        torch.testing.assert_close(made, expected, **close)
        grids.append(grid)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(block_sparse, "sparse_attention", masked)
        yield grids


@pytest.mark.parametrize("name", some(NAMES, 0))
def test_a_map_that_keeps_everything_is_the_classs_own_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs(made(name).denoiser, name)
    shape = SparsityPolicy.dense_shape

    def dropping_nothing(self: SparsityPolicy, image: int, *rest: Any) -> str:
        return "" if image >= 128 else shape(self, image, *rest)

    monkeypatch.setattr(SparsityPolicy, "dense_shape", dropping_nothing)
    monkeypatch.setattr(gathered, "pays", lambda *_: False)  # one class attends in bf16, which another kernel rounds
    order = "raster" if name in RECURRENT or "grid" in wired(name).lacks else "hilbert"
    with Stack(made(name).denoiser, steps=len(LEVELS)).sparse_attn(0.99, block=64, order=order) as stack:
        found = outputs(stack, name)
        figures = stack.report().passes["sparse_attn"]
        assert figures["sparse_calls"] >= 2 and figures["token_orders"] == {order: 1.0}
    for one, other in zip(found, expected, strict=True):
        for mine, own in zip(one, other, strict=True):
            torch.testing.assert_close(mine, own, atol=2e-5 * math.sqrt(own.numel()) / 10, rtol=1e-3)


@pytest.mark.parametrize("name", some(NAMES, 1))
def test_blocks_are_dropped_between_dense_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense steps bit for bit, sparse calls as their map says, and nothing left behind."""
    expected, keys = outputs(made(name).denoiser, name), list(made(name).denoiser.state_dict())
    stack = Stack(made(name).denoiser, steps=len(LEVELS)).sparse_attn(0.5, block=64, even_if_slower=True)
    with checked(monkeypatch) as grids, stack:
        found = outputs(stack, name)
        assert list(made(name).denoiser.state_dict()) == keys
        figures = stack.report().passes["sparse_attn"]
    assert [same(one, own) for one, own in zip(found, expected, strict=True)] == [True, False, False, True]
    layers = sum(numbered(path) in wired(name).attention for path, _ in made(name).denoiser.named_modules())
    dense = dict(figures["dense_calls"])
    layers -= dense.pop(MIXED.get(name), 0) // len(LEVELS)
    assert dense.pop(FIRST) == dense.pop(LAST) == layers
    assert all("none of which" in reason or reason == DENSE.get(name) for reason in dense)  # low levels of a U-Net
    assert figures["sparse_calls"] == len(grids) == 2 * layers - sum(dense.values()) > 0
    assert all(grid.kept(0.5) < grid.blocks and grid.density(0.5) < 1 for grid in grids)
    assert 0.4 < figures["density"] < 1
    assert all(same(one, own) for one, own in zip(outputs(made(name).denoiser, name), expected, strict=True))


@pytest.mark.parametrize("name", WITHOUT)
def test_what_has_none_says_why(name: str) -> None:
    said = Stack(made(name).denoiser, steps=len(LEVELS)).sparse_attn(even_if_slower=True).explain()
    assert f"no block-sparse attention for {name}" in said


def test_most_classes_have_it() -> None:
    assert len(NAMES) == 59
