from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from stack import Stack
from stack.measure.flops import Work, counted, counting, row_work
from stack.models.derive.wiring import wiring_of
from stack.runtime.step import ALL, NO_BLOCK, NOTHING, Computed

from ..conftest import picture, tiny_pipe

WIDTH, TEXT, IMAGE, JOINT, POOLED = 32, 5, 12, 24, 16


@pytest.fixture(scope="module")
def flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=JOINT, pooled_projection_dim=POOLED, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def call(model: nn.Module, batch: int = 1) -> None:
    with torch.no_grad():
        model(
            hidden_states=torch.randn(batch, IMAGE, 8),
            encoder_hidden_states=torch.randn(batch, TEXT, JOINT),
            pooled_projections=torch.randn(batch, POOLED),
            timestep=torch.full((batch,), 0.5),
            img_ids=torch.zeros(IMAGE, 3),
            txt_ids=torch.zeros(TEXT, 3),
        )


def by_hand() -> Work:
    """Multiply-accumulates from the layout of FLUX: every block as its paper draws it."""
    d, n = WIDTH * WIDTH, IMAGE + TEXT
    # Double block: modulation 6 D for both streams (one row each), q k v o and a 4x MLP on every token.
    double = 2 * 6 * d + n * (4 + 8) * d
    # Single block: modulation 3 D, q k v and the MLP's first half, then one projection from 5 D to D.
    single = 3 * d + n * (3 + 4 + 5) * d
    attention = 2 * n * n * WIDTH
    timestep = 256 * WIDTH + d
    pooled = POOLED * WIDTH + d
    embedders = IMAGE * 8 * WIDTH + TEXT * JOINT * WIDTH + timestep + pooled
    head = 2 * d + IMAGE * WIDTH * 8
    return Work(linears=2 * double + 3 * single, attention=5 * attention, rest=embedders + head)


@pytest.mark.parametrize("batch", [1, 3])
def test_work_of_flux_matches_a_count_by_hand(flux: FluxTransformer2DModel, batch: int) -> None:
    with counting(flux, wiring_of(flux).blocks(flux)) as work:
        call(flux, batch)
        call(flux, batch)  # only the first call counts
    assert work() == by_hand()


def test_counting_leaves_no_hook_behind(flux: FluxTransformer2DModel) -> None:
    with counting(flux, wiring_of(flux).blocks(flux)) as work:
        pass
    assert work() == Work(0, 0, 0)
    assert not any(module._forward_hooks for module in flux.modules())


def test_work_of_a_step_follows_what_ran() -> None:
    work = Work(linears=800, attention=200, rest=10)
    assert work.step() == 1010
    assert work.step(NO_BLOCK) == 10 and work.step(NOTHING) == 0
    assert work.step(density=0.5) == 910
    assert work.step(Computed(0.25, 0.5), density=0.5) == 10 + 200 + 50
    assert row_work(work, [ALL, NO_BLOCK, NO_BLOCK, ALL], 0.25) == 2 * 860 + 2 * 10


@pytest.mark.parametrize("batch", [1, 3])
def test_what_ran_is_two_flops_per_multiply_accumulate(flux: FluxTransformer2DModel, batch: int) -> None:
    with counted(flux) as ran:
        call(flux, batch)
        call(flux, batch)
    assert ran.calls == [2 * batch * by_hand().step()] * 2
    assert ran.flops == sum(ran.calls)
    assert ran.shares(ran.calls[0]) == [1.0, 1.0]


def test_a_broken_request_leaves_no_hook_and_keeps_its_count(flux: FluxTransformer2DModel) -> None:
    with pytest.raises(RuntimeError, match="enough"), counted(flux) as ran:
        call(flux)
        raise RuntimeError("enough")
    assert ran.flops == 2 * by_hand().step()
    assert not flux._forward_hooks and not flux._forward_pre_hooks


def test_token_wise_steps_count_the_tokens_that_ran() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=14).cache("toca", interval=7)
    with counted(pipe.transformer) as ran, stack:
        picture(stack)
        kinds = [step.kind for step in stack.report().steps]
    shares = ran.shares(max(ran.calls))
    assert [share == 1 for share in shares] == [kind == "full" for kind in kinds]
    partial = [share for share in shares if share < 1]
    assert min(partial) > 0 and max(partial) < 0.9 and len(partial) == 14 - kinds.count("full")


def test_cached_steps_count_what_the_head_needs_and_no_embedders_of_tokens() -> None:
    pipe = tiny_pipe()
    with counted(pipe.transformer) as ran, Stack(pipe, steps=14).cache("reuse", interval=7) as stack:
        picture(stack)
    work = Work(0, 0, 0)
    with counting(pipe.transformer, wiring_of(pipe.transformer).blocks(pipe.transformer)) as counted_once:
        picture(pipe, steps=1)
        work = counted_once()
    tokens = {"x_embedder": 64, "context_embedder": 16}  # nobody reads them on a cached step
    idle = sum(count * pipe.transformer.get_submodule(name).weight.numel() for name, count in tokens.items())
    assert {*ran.calls} == {2 * work.step(), 2 * (work.rest - idle)}
