"""What must not be forecast from is not: features without a number, features of other weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stack import Stack
from stack.caching.guard import OutputGuard, fault, norms_of, spread
from stack.compat.rules.state import NOT_A_NUMBER
from stack.core.readback import Readback

from ..conftest import inputs, tiny_denoiser

STEPS = 14
METHODS = (
    "svd",
    "taylorseer",
    "predictor-corrector",
    "fora",
    "svd-published-blocks",
    "duca",
    "easycache-published",
    "rfc",
    "first-block",
)
GATED = ("easycache-published", "rfc", "first-block")


def walk(stack: Stack, steps: range) -> list[torch.Tensor]:
    with torch.no_grad():
        return [stack(**inputs(1 - step / STEPS))[0] for step in steps]


class Spoiled(nn.Module):
    """Gives something else once: its output times a factor, NaN unless told otherwise."""

    def __init__(self, inner: nn.Module, at: int, factor: float = math.nan):
        super().__init__()
        self.inner, self.left, self.factor = inner, at, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        out = self.inner(x)
        return out * self.factor if self.left == 0 else out


@pytest.mark.parametrize("method", ["svd", "taylorseer", "fora"])
def test_a_step_that_fails_spoils_no_other(method: str) -> None:
    """NaN on full step 2: the next one runs in full although the schedule has it cached, and is sound again."""
    denoiser = tiny_denoiser()
    block = denoiser.transformer_blocks[0]
    block.ff.net[2] = Spoiled(block.ff.net[2], at=3)
    stack = Stack(denoiser, steps=STEPS).cache(method, warmup=3, interval=3)
    outs = walk(stack, range(6))
    assert [bool(out.isfinite().all()) for out in outs] == [True, True, False, True, True, True]
    assert [record.kind for record in stack.report().steps] == ["full"] * 4 + ["cached", "full"]
    text = "NaN or infinity in a feature before step 3: dropped, the step runs in full"
    assert stack.report().warnings == [NOT_A_NUMBER.annotate(text)]


def test_state_that_overflows_its_dtype_is_not_used() -> None:
    """Features beyond 65,504 kept in float16."""
    denoiser = tiny_denoiser()
    with torch.no_grad():
        denoiser.x_embedder.weight.mul_(1e7)
    stack = Stack(denoiser, steps=STEPS).cache("svd", warmup=1, interval=3, state_dtype="float16")
    outs = walk(stack, range(4))
    assert all(bool(out.isfinite().all()) for out in outs)
    assert stack.report().full_steps == 4
    assert "NaN or infinity" in stack.report().warnings[0]


@pytest.mark.parametrize("method", METHODS[:2])
def test_weights_that_change_under_a_request_drop_its_state(method: str) -> None:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser, steps=STEPS).cache(method, warmup=2, interval=6)
    walk(stack, range(4))
    with torch.no_grad():
        denoiser.proj_out.weight.mul_(1.5)
    (got,) = walk(stack, range(4, 5))
    assert [record.kind for record in stack.report().steps] == ["full", "full", "cached", "cached", "full"]
    assert stack.report().passes["cache"]["dropped"] == 1
    stack.undo()
    with torch.no_grad():
        assert torch.equal(got, denoiser(**inputs(1 - 4 / STEPS))[0])


def plain(stack: Stack, step: int) -> torch.Tensor:
    """What the denoiser gives on this step without the stack."""
    denoiser = stack.undo().denoiser
    with torch.no_grad():
        return denoiser(**inputs(1 - step / STEPS))[0]


def test_a_branch_without_a_number_is_the_one_that_is_dropped() -> None:
    """NaN in the conditional branch is noticed by the next call of that branch, and only there."""
    denoiser = tiny_denoiser()
    denoiser.transformer_blocks[0].ff.net[2] = Spoiled(denoiser.transformer_blocks[0].ff.net[2], at=5)
    stack = Stack(denoiser, steps=STEPS).cache("svd", warmup=3, interval=9).apply()
    finite = []
    for step in range(5):
        for branch in ("cond", "uncond"):
            with denoiser.cache_context(branch):
                finite.append(bool(walk(stack, range(step, step + 1))[0].isfinite().all()))
    assert [number for number, good in enumerate(finite) if not good] == [4]
    kinds = {b: "".join(r.kind[0] for r in stack.report().steps if r.branch == b) for b in ("cond", "uncond")}
    assert kinds == {"cond": "ffffc", "uncond": "fffcc"}


@pytest.mark.parametrize("method", ["taylorseer", "taylorseer-lite", "svd-published-blocks"])
def test_a_forecast_that_blows_up_is_refused_before_a_block_is_skipped(method: str) -> None:
    """Full step 1 is 10,000 times too large: what is extrapolated from it and step 2 would be, too."""
    denoiser = tiny_denoiser()
    last = denoiser.single_transformer_blocks[0]
    last.proj_out = Spoiled(last.proj_out, at=2, factor=1e4)
    whole = {"order": 1, "gains": (1.0, 1.0), "smoothing": 0.0}
    stack = Stack(denoiser, steps=STEPS).cache(method, warmup=3, interval=9, **whole)
    got = walk(stack, range(4))[-1]
    report = stack.report()
    assert [record.kind for record in report.steps] == ["full"] * 4
    assert report.passes["cache"]["recomputed"] == 1
    assert "forecast refused at step 3" in report.warnings[0]
    assert torch.equal(got, plain(stack, 3))


@pytest.mark.parametrize(
    ("factor", "said"), [(math.nan, "NaN or infinity"), (1e3, "saturated"), (0.0, "constant over the tokens")]
)
def test_a_cached_output_that_is_no_picture_is_made_again_in_full(factor: float, said: str) -> None:
    denoiser = tiny_denoiser()
    denoiser.proj_out = Spoiled(denoiser.proj_out, at=4, factor=factor)
    with torch.no_grad():
        denoiser.proj_out.inner.bias.zero_()
    stack = Stack(denoiser, steps=STEPS).cache("svd", warmup=3, interval=9)
    outs = walk(stack, range(5))
    report = stack.report()
    assert [record.kind for record in report.steps] == ["full"] * 4 + ["cached"]
    assert report.warnings == [f"output of cached step 3 was {said}: the step was made again in full"]
    assert report.passes["cache"]["recomputed"] == 1
    assert torch.equal(outs[3], plain(stack, 3))


@pytest.mark.parametrize("method", METHODS)
def test_state_that_is_spoiled_in_memory_is_not_handed_on(method: str) -> None:
    """Whatever happened to it: the same call gives what a full step gives, at every kind of site."""
    options = {"threshold": 9.0} if method in GATED else {"interval": 9}
    stack = Stack(tiny_denoiser(), steps=STEPS).cache(method, warmup=3, **options)
    walk(stack, range(3))
    controller = stack._layers[-1].applied.details["controller"]
    for cell in controller.slots:
        for held in (
            cell.kept.values(),
            [x0 for _, x0 in cell.debts.full],
            *(p._terms for p in cell.predictors.values()),
        ):
            for tensor in held:
                tensor.fill_(math.nan)
    (got,) = walk(stack, range(3, 4))
    assert stack.report().steps[-1].kind == "full"
    assert torch.equal(got, plain(stack, 3))


def test_no_number_in_the_very_last_step_is_told() -> None:
    denoiser = tiny_denoiser()
    denoiser.proj_out = Spoiled(denoiser.proj_out, at=STEPS)
    stack = Stack(denoiser, steps=STEPS).cache("svd", warmup=2, interval=STEPS - 2)
    walk(stack, range(STEPS))
    assert stack.report().steps[-1].kind == "full"
    assert f"output of step {STEPS - 1} was NaN or infinity" in stack.report().warnings


def test_a_cache_that_left_the_output_as_it_was_says_so() -> None:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser, steps=STEPS).cache("first-block", threshold=0.0)
    outs = walk(stack, range(STEPS))
    assert f"0 of {STEPS} steps cached: the gate let none pass" in stack.report().warnings
    assert all(torch.equal(out, plain(stack, step)) for step, out in enumerate(outs))


def test_a_model_that_returns_nan_is_not_said_to_have_run_in_full_by_its_schedule() -> None:
    denoiser = tiny_denoiser()
    with torch.no_grad():
        denoiser.proj_out.weight.fill_(math.nan)
        denoiser.transformer_blocks[0].norm1.linear.bias.fill_(math.nan)
    stack = Stack(denoiser, steps=STEPS).cache("svd", warmup=2, interval=STEPS - 2)
    walk(stack, range(STEPS))
    assert f"0 of {STEPS} steps cached: what was kept had to be dropped" in stack.report().warnings


def test_what_was_put_off_on_an_accelerator_is_read_by_the_report() -> None:
    """Findings about cached steps are tensors until then; those of requests gone by are of no use."""
    stack = Stack(tiny_denoiser(), steps=STEPS).cache("svd", warmup=3, interval=9)
    walk(stack, range(5))
    controller = stack._layers[-1].applied.details["controller"]
    guard = OutputGuard(controller.clock, stack._target.journal, controller.empty)
    good, flat = (Readback(torch.tensor([[1.0], [mean]])) for mean in (0.5, 1.0))
    guard._late = [(controller.now.request, 3, 1, flat, good), (controller.now.request - 1, 2, 1, flat, good)]
    guard.settle()
    assert stack.report().warnings == ["output of step 3 was constant over the tokens"]


@pytest.mark.parametrize(("shape"), [(2, 5, 3), (2, 3, 5), (2, 3, 5, 4), (2, 3, 2, 5, 4)])
def test_norms_are_of_every_sample_by_itself(shape: tuple[int, ...]) -> None:
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    output[1] *= 3
    norms, tokens = norms_of(output), output if output.ndim == 3 else output.flatten(2).mT
    torch.testing.assert_close(norms[0], tokens.flatten(1).norm(dim=1))
    count = tokens.shape[1]
    found = [spread(norm, mean, count) for norm, mean in zip(*norms.tolist(), strict=True)]
    distances = (tokens - tokens.mean(1, keepdim=True)).square().mean(1).sum(-1).sqrt()
    assert found == pytest.approx(distances.tolist(), rel=1e-5)
    assert fault(norms.tolist(), norms.tolist(), count) == ""
    output[0] = math.inf
    assert fault(norms_of(output).tolist(), norms.tolist(), count) == "NaN or infinity"


@pytest.mark.parametrize("spoil", ["weights", "output"])
def test_what_has_been_spent_of_an_error_stays_spent(spoil: str) -> None:
    """State dropped in the middle of a request does not open a second budget."""
    denoiser = tiny_denoiser()
    stack = Stack(denoiser, steps=50).cache("svd", max_error=0.5, energy=1.0, gains=(1.0, 1.0))
    spent = []
    for step in range(20):
        with torch.no_grad():
            if step == 14 and spoil == "weights":
                denoiser.proj_out.weight.mul_(1.5)
            if step == 14 and spoil == "output":
                for predictor in stack._layers[-1].applied.details["controller"].slots[0].predictors.values():
                    predictor._terms[0].fill_(math.nan)
            stack(**{**inputs(1 - step / 50), "hidden_states": inputs()["hidden_states"] * (1 + step / 20) ** 2})
        slot = stack._layers[-1].applied.details["controller"].slots[0]
        spending = slot.gate.spending
        spent.append(spending.spent * (spending.size or 1.0) ** 2)  # not relative to a size that changes
    report = stack.report()
    assert report.steps[13].kind == "cached" and report.steps[14].kind == "full"
    assert spent[13] > 0 and spent[-1] >= 0.9 * spent[14] and spent[14] >= 0.9 * spent[13]
