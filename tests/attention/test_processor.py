"""The processor inside a real FLUX denoiser: dense calls untouched, sparse calls what their map says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from stack.attention import processor as subject
from stack.attention.flex import Flex
from stack.attention.kernels import dense
from stack.attention.maps import Grid
from stack.attention.processor import BlockSparseProcessor, Shared
from stack.attention.sparsity import MASKED, NO_TEXT_LENGTH, OUTSIDE, SparsityPolicy, Tally
from stack.models.attention import FLUX
from stack.models.schedule import uniform
from stack.runtime.step_clock import Clock

from ..clocks import advance, clock_of
from ..conftest import inputs, tiny_denoiser

SIDE = 18  # 324 image tokens: five key blocks of 64 and a tail


@pytest.fixture
def clock() -> Clock:
    clock = clock_of(uniform(10))
    for sigma in clock.timetable.schedule.sigmas[:5]:
        advance(clock, sigma, (1, SIDE * SIDE, 12))
    return clock


def wrapped(model: FluxTransformer2DModel, clock: Clock, keep: float = 0.5) -> tuple[Tally, dict[str, Any]]:
    """Counts of the calls, and the arguments that the denoiser is taken to have been called with."""
    policy, tally, given = SparsityPolicy(keep, block=64, even_if_slower=True), Tally(clock), inputs()
    shared = Shared(FLUX, policy, tally, lambda: given, Flex())
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.attn.processor = BlockSparseProcessor(block.attn.processor, shared)
    return tally, given


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
    assert (tally.sparse, tally.dense, tally.figures()["density"]) == (2, {}, pytest.approx(density))


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
    assert dict(tally.dense) == {OUTSIDE: 2}


def test_a_mask_goes_to_the_original_processor(clock: Clock) -> None:
    mask = torch.ones(1, 1, 340, 340, dtype=torch.bool)
    mask[..., 20:40] = False
    model = tiny_denoiser()
    expected = run(model, joint_attention_kwargs={"attention_mask": mask})
    tally, _ = wrapped(model, clock)
    assert torch.equal(run(model, joint_attention_kwargs={"attention_mask": mask}), expected)
    assert not torch.equal(run(tiny_denoiser()), expected)
    assert dict(tally.dense) == {MASKED: 2}


def test_unknown_text_length_in_a_single_block_is_dense(clock: Clock) -> None:
    model = tiny_denoiser()
    expected = run(model)
    tally, given = wrapped(model, clock)
    given.clear()
    out = run(model)
    assert dict(tally.dense) == {NO_TEXT_LENGTH: 1} and tally.sparse == 1
    assert not torch.equal(out, expected)


def test_backend_settings_reach_the_original_processor(clock: Clock) -> None:
    model = tiny_denoiser()
    wrapped(model, clock)
    processor = model.transformer_blocks[0].attn.processor
    model.set_attention_backend("native")
    assert isinstance(processor.inner, FluxAttnProcessor)
    assert processor.inner._attention_backend is not None
    assert processor._attention_backend is processor.inner._attention_backend
    processor._parallel_config = "anything"
    assert processor.inner._parallel_config == "anything"
    processor._parallel_config = None


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
    assert tally.sparse == 10
