"""Attention layers of a real FLUX denoiser: dense calls untouched, sparse calls what their map says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from stack.attention import block_sparse as subject
from stack.attention.block_sparse import BlockSparse
from stack.attention.flex import Flex
from stack.attention.head_orders import HeadOrders
from stack.attention.kernels import dense
from stack.attention.layers import put_backend
from stack.attention.maps import Grid
from stack.attention.sparsity import MASKED, NO_TEXT_LENGTH, OUTSIDE, SparsityPolicy
from stack.attention.tally import Tally
from stack.core.installer import Installer
from stack.model_facts import facts_of
from stack.models.schedule import uniform
from stack.runtime.report import Journal
from stack.runtime.step_clock import Clock
from stack.runtime.target import Target

from ..clocks import advance, clock_of
from ..conftest import inputs, tiny_denoiser
from ..wirings import FLUX

SIDE = 18  # 324 image tokens: five key blocks of 64 and a tail


@pytest.fixture
def clock() -> Clock:
    clock = clock_of(uniform(10))
    for sigma in clock.timetable.schedule.sigmas[:5]:
        advance(clock, sigma, (1, SIDE * SIDE, 12))
    return clock


def wrapped(model: FluxTransformer2DModel, clock: Clock, keep: float = 0.5) -> tuple[Tally, Target]:
    """Counts of the calls, and what the denoiser is taken to have been called with."""
    target = Target(model, FLUX, facts_of(model, FLUX, None, 10), clock, Journal(), lambda: 0)
    target.conditions.given, tally = inputs(side=SIDE), Tally(clock)
    policy = SparsityPolicy(keep, block=64, even_if_slower=True)
    layers = put_backend(
        target, Installer(), BlockSparse(policy, target.facts.machine, tally, Flex(), HeadOrders(target))
    )
    assert list(layers) == ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
    return tally, target


@torch.inference_mode()
def run(model: FluxTransformer2DModel, batch: int = 1, **extra: Any) -> torch.Tensor:
    return model(**inputs(side=SIDE, batch=batch), **extra, return_dict=False)[0]


def test_own_preprocessing_equals_diffusers(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """With dense attention in the kernel's place, double and single blocks compute what diffusers computes."""
    expected = run(tiny_denoiser())
    seen: list[Grid] = []

    def dense_instead(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Any, grid: Grid, *__: Any) -> torch.Tensor:
        seen.append(grid)
        return dense(q, k, v)

    monkeypatch.setattr(subject, "sparse_attention", dense_instead)
    model = tiny_denoiser()
    wrapped(model, clock)
    torch.testing.assert_close(run(model), expected, atol=1e-6, rtol=0)
    assert seen == [Grid(text=16, image=324, key=64, group=1)] * 2


def test_fused_projections_are_understood(clock: Clock) -> None:
    plain, fused = tiny_denoiser(), tiny_denoiser()
    fused.fuse_qkv_projections()
    wrapped(plain, clock), wrapped(fused, clock)
    torch.testing.assert_close(run(fused), run(plain), atol=1e-5, rtol=0)


def test_sparse_calls_differ_and_are_counted(clock: Clock) -> None:
    model = tiny_denoiser()
    expected = run(model)
    tally, _ = wrapped(model, clock)
    assert 1e-5 < (run(model) - expected).norm() / expected.norm() < 0.5
    density = Grid(16, 324, 64, 1).density(0.5)
    assert (tally.taken, tally.left, tally.figures()["density"]) == (2, {}, pytest.approx(density))


def test_batched_equals_one_by_one(clock: Clock) -> None:
    model = tiny_denoiser()
    wrapped(model, clock)
    given = inputs(side=SIDE, batch=3)
    with torch.inference_mode():
        together = model(**given, return_dict=False)[0]
        for i in range(3):
            one = {name: x if name.endswith("_ids") else x[i : i + 1] for name, x in given.items()}
            torch.testing.assert_close(together[i : i + 1], model(**one, return_dict=False)[0], atol=1e-5, rtol=0)


def test_dense_outside_a_request_is_bit_identical() -> None:
    model = tiny_denoiser()
    expected = run(model)
    tally, _ = wrapped(model, clock_of(uniform(10)))
    assert torch.equal(run(model), expected)
    assert dict(tally.left) == {OUTSIDE: 2}


def test_a_mask_goes_to_the_original_processor(clock: Clock) -> None:
    mask = torch.ones(1, 1, 340, 340, dtype=torch.bool)
    mask[..., 20:40] = False
    model = tiny_denoiser()
    expected = run(model, joint_attention_kwargs={"attention_mask": mask})
    tally, _ = wrapped(model, clock)
    assert torch.equal(run(model, joint_attention_kwargs={"attention_mask": mask}), expected)
    assert not torch.equal(run(tiny_denoiser()), expected)
    assert dict(tally.left) == {MASKED: 2}


def test_an_unknown_text_length_is_dense(clock: Clock) -> None:
    model = tiny_denoiser()
    expected = run(model)
    tally, target = wrapped(model, clock)
    target.conditions.given = {}
    assert torch.equal(run(model), expected)
    assert dict(tally.left) == {NO_TEXT_LENGTH: 2} and tally.taken == 0


def test_a_back_end_past_torch_stays_dense_and_is_counted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that diffusers' dispatcher calls in place of torch's attention."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    def other(query: Any, key: Any, value: Any, **_: Any) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.SAGE, other)
    model = tiny_denoiser()
    model.transformer_blocks[0].attn.processor._attention_backend = AttentionBackendName.SAGE
    expected = run(model)
    tally, _ = wrapped(model, clock)
    assert not torch.equal(run(model), expected)
    assert (tally.taken, dict(tally.left)) == (1, {"no scaled_dot_product_attention over the sequence in sage": 1})


def test_the_users_own_processor_is_looked_through(clock: Clock) -> None:
    class Louder(FluxAttnProcessor):
        def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(attn, 2 * hidden_states, *args, **kwargs)

    model, plain = tiny_denoiser(), tiny_denoiser()
    for one in (model, plain):
        one.single_transformer_blocks[0].attn.processor = Louder()
    tally, _ = wrapped(model, clock, keep=0.7)
    expected = run(plain)
    assert 1e-6 < (run(model) - expected).norm() / expected.norm() < 0.1
    assert tally.taken == 2


def test_context_parallelism_stays_dense(clock: Clock) -> None:
    model = tiny_denoiser()
    tally, _ = wrapped(model, clock)
    attn = model.single_transformer_blocks[0].attn
    seen: list[bool] = []
    monkey = attn.processor

    class Parallel(FluxAttnProcessor):
        """Says that it is, and computes as before: there is but one process."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(True)
            return monkey(*args, **kwargs)

    attn.processor = Parallel()
    attn.processor._parallel_config = "ring"
    run(model)
    assert seen == [True] and dict(tally.left) == {"context parallelism": 1} and tally.taken == 1


def test_state_dict_keys_stay(clock: Clock) -> None:
    model = tiny_denoiser()
    before = list(model.state_dict())
    wrapped(model, clock)
    assert list(model.state_dict()) == before


def test_compiled_blocks_break_around_attention_once(clock: Clock) -> None:
    """A step counter inside compiled code would compile every step anew."""
    model = tiny_denoiser()
    tally, _ = wrapped(model, clock)
    expected = run(model)
    graphs: list[int] = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(1)
        return graph.forward

    block = model.single_transformer_blocks[0]
    block.forward = torch.compile(block.forward, backend=backend, dynamic=False)
    torch.testing.assert_close(run(model), expected, atol=1e-5, rtol=0)
    compiled = len(graphs)
    for sigma in clock.timetable.schedule.sigmas[5:8]:
        advance(clock, sigma, (1, SIDE * SIDE, 12))
        run(model)
    assert compiled > 0 and len(graphs) == compiled
    assert tally.taken == 10
