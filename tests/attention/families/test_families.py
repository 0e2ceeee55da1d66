"""What holds for block-sparse attention in every family."""

from __future__ import annotations

import pytest
import torch

from stack import Stack
from stack.attention.cost import CPU
from stack.attention.maps import Grid
from stack.attention.sparsity import FIRST, LAST, MASKED, SparsityPolicy
from stack.models.schedule import uniform

from .rig import EXACT, HIDDEN, NAMES, STEPS, TOKENS, denoiser, given, request, sample, stack_of, steps

by_family = pytest.mark.parametrize("name", NAMES)


@by_family
def test_a_map_that_keeps_everything_is_the_familys_own_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the reading, and all of the sparse kernels, on a batch in which one caption is padded."""
    plain = steps(Stack(denoiser(name), steps=STEPS), request(name, batch=2))
    monkeypatch.setattr(SparsityPolicy, "dense_shape", lambda *_: "")
    stack = stack_of(name, keep=0.99)
    grid = stack.passes[0].policy.grid(*TOKENS[name], "cpu")
    assert grid.kept(0.99) == grid.blocks >= 4
    for sparse, expected in zip(steps(stack, request(name, batch=2)), plain, strict=True):
        torch.testing.assert_close(sparse, expected, atol=EXACT, rtol=EXACT)
    assert stack.report().passes["sparse_attn"]["sparse_calls"] == 6


@by_family
def test_what_is_dropped_shows_and_is_counted(name: str) -> None:
    stack, plain = stack_of(name), Stack(denoiser(name), steps=STEPS)
    calls = request(name, count=STEPS)
    same = [torch.equal(a, b) for a, b in zip(steps(stack, calls), steps(plain, calls), strict=True)]
    assert same == [True] + [False] * (STEPS - 2) + [True]
    figures = stack.report().passes["sparse_attn"]
    assert figures["sparse_calls"] == 2 * (STEPS - 2) and figures["dense_calls"] == {FIRST: 2, LAST: 2}
    image, text = TOKENS[name]
    density = Grid(text, image, 64, 1 if name == "dit" else 4).density(0.5)
    assert figures["density"] == pytest.approx(((STEPS - 2) * density + 2) / STEPS)
    assert density < 0.9


@by_family
def test_batched_equals_one_by_one(name: str) -> None:
    """A guidance branch in the same batch is one more sample."""
    calls = request(name, batch=3, count=3)
    together = steps(stack_of(name), calls)
    for i in range(3):
        alone = steps(stack_of(name), {sigma: sample(call, i) for sigma, call in calls.items()})
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one, all_[i : i + 1], atol=EXACT, rtol=EXACT)


@by_family
def test_undone_bit_for_bit(name: str) -> None:
    model = denoiser(name)
    keys, call = list(model.state_dict()), given(name, 0.5)
    with torch.no_grad():
        before = model(**call, return_dict=False)[0]
        stack = Stack(model, steps=STEPS).sparse_attn(even_if_slower=True)
        stack(**call)
        assert list(model.state_dict()) == keys
        stack.undo()
        assert torch.equal(model(**call, return_dict=False)[0], before)


def test_padding_of_a_caption_stays_hidden() -> None:
    name = "hunyuan-video"
    calls, others = request(name, batch=2), request(name, batch=2)
    for call in others.values():
        call["encoder_hidden_states"][0, -HIDDEN:] = 7.0
    for one, other in zip(steps(stack_of(name), calls), steps(stack_of(name), others), strict=True):
        torch.testing.assert_close(one, other, atol=EXACT, rtol=EXACT)
    shown = {sigma: given(name, sigma, batch=2, masked=False) for sigma in calls}
    assert not torch.allclose(steps(stack_of(name), shown)[1], steps(stack_of(name), calls)[1], atol=1e-3)


def test_a_mask_that_hides_more_than_text_stays_dense() -> None:
    """DiT's attention takes a mask over its own tokens."""
    stack = stack_of("dit").apply()
    attn = stack.denoiser.transformer_blocks[0].attn1
    for sigma in uniform(STEPS).sigmas[:2]:
        steps(stack, {sigma: given("dit", sigma)})
    x, mask = torch.randn(1, 256, 128), torch.zeros(1, 1, 256)
    tally = stack._layers[0].applied.details["tally"]
    sparse = tally.taken
    with torch.no_grad():
        assert torch.equal(attn(x, attention_mask=mask), attn(x)) and tally.taken == sparse + 2  # it hides nothing
        mask[..., 100:] = -1e9
        expected = attn.processor(attn, x, attention_mask=mask)
        assert torch.equal(attn(x, attention_mask=mask), expected) and not torch.equal(attn(x), expected)
    assert tally.left[MASKED] == 1


def test_short_sequences_are_forced_only_when_told() -> None:
    """At 256 tokens the usual query block leaves nothing to drop."""
    told, untold = SparsityPolicy(0.5, even_if_slower=True), SparsityPolicy(0.5)
    assert told.grid(256, 0, "cpu") == Grid(0, 256, 64, 1) and told.dense_shape(256, 0, CPU) == ""
    assert untold.grid(256, 0, "cpu").group == 4 and "none of which" in untold.dense_shape(256, 0, CPU)
    assert told.grid(1024, 16, "cpu").group == 4
