"""Every safeguard is held up by a test: with the safeguard taken out, the test that is named here fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from stack.caching.controller import CacheController
from stack.caching.guard import FLAT, OutputGuard
from stack.caching.sites.block_range import BlockRange
from stack.caching.spending import Spending
from stack.compat.noise import NoiseLedger
from stack.core.installer import Installer
from stack.runtime.conditions import AttentionWatch, Conditioning, WeightsWatch
from stack.runtime.stamp import Stamp
from stack.runtime.target import Target

from .. import test_undo
from ..caching import test_controller, test_spending
from . import test_guards, test_leaks, test_noise, test_stamp

Test = Callable[[], None]


@dataclass(frozen=True)
class Mutation:
    """A safeguard taken out.

    Attributes:
        owner: the class, or the module by its path, whose attribute is replaced.
        fails: the test that has to notice.
    """

    owner: Any
    name: str
    instead: Any
    fails: Test


def ones(power: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.ones_like(power)


def silent(ledger: NoiseLedger, mix: dict[int, float]) -> torch.Tensor:
    return torch.zeros_like(next(iter(ledger._variances.values())))


def noise_alone(kind: str) -> Test:
    return lambda: test_noise.test_nothing_but_noise_is_plain_reuse_exactly.hypothesis.inner_test(kind, 1, 0)


MUTATIONS: dict[str, list[Mutation]] = {
    "no stamp": [
        Mutation(
            Stamp, "__eq__", lambda mine, other: True,
            lambda: test_stamp.test_every_kind_of_state_is_under_the_stamp("svd"),
        )
    ],
    "no watch over the weights": [
        Mutation(
            WeightsWatch, "__call__", lambda watch, request: 0,
            lambda: test_guards.test_weights_that_change_under_a_request_drop_its_state("taylorseer"),
        )
    ],
    "steps of two kinds taken for one": [
        Mutation(
            "stack.runtime.step_clock", "replace", lambda context, **_: context,
            lambda: test_controller.test_a_jump_between_ways_of_computing_is_no_error_of_the_forecast(bridges=False),
        )
    ],
    "no watch over adapters' scales": [
        Mutation(
            WeightsWatch, "adapters", (),
            lambda: test_stamp.test_whatever_changes_on_the_model_drops_the_state("an adapter is scaled"),
        )
    ],
    "no watch over attention": [
        Mutation(
            AttentionWatch, "__call__", lambda watch, request: (),
            lambda: test_stamp.test_whatever_changes_on_the_model_drops_the_state("attention is exchanged"),
        )
    ],
    "prompts are not told apart": [
        Mutation(
            Conditioning, "__call__", lambda watch, request, branch, given: (),
            lambda: test_stamp.test_another_prompt_or_grid_on_the_same_model("img_ids", "svd"),
        )
    ],
    "callers are not told apart": [
        Mutation(
            "stack.runtime.conditions", "caller", lambda: None,
            test_stamp.test_two_loops_with_one_prompt_from_two_threads_and_two_tasks,
        )
    ],
    "no shrinkage": [
        Mutation("stack.compat.noise", "wiener", ones, noise_alone("none")),
        Mutation("stack.caching.splits", "wiener", ones, noise_alone("basis")),
    ],
    "no noise in the ledger": [Mutation(NoiseLedger, "variance", silent, noise_alone("basis"))],
    "steps are counted instead of time": [
        Mutation(
            "stack.caching.controller", "coordinate", lambda name, step, time, sigma: float(step),
            lambda: test_controller.test_a_forecast_follows_the_coordinate_over_uneven_steps("sigma"),
        )
    ],
    "nothing is rolled back": [
        Mutation(
            Installer, "rollback", lambda install: None, test_undo.test_a_bare_denoiser_is_restored_bit_for_bit
        )
    ],
    "drafts are not taken back": [
        Mutation(
            BlockRange, "_checked", lambda span, step, call, out, stream: out,
            test_controller.test_a_draft_that_fails_its_check_is_taken_back,
        )
    ],
    "what is no number is forecast from": [
        Mutation(
            CacheController, "drop_nonfinite", lambda controller: None,
            lambda: test_guards.test_a_step_that_fails_spoils_no_other("svd"),
        )
    ],
    "outputs are not looked at": [
        Mutation(
            "stack.caching.guard", "fault", lambda norms, full, tokens: "",
            lambda: test_guards.test_a_cached_output_that_is_no_picture_is_made_again_in_full(0.0, FLAT),
        )
    ],
    "nothing is made again": [
        Mutation(
            OutputGuard, "intercept", lambda guard, call, proceed: proceed(call),
            lambda: test_guards.test_state_that_is_spoiled_in_memory_is_not_handed_on("svd"),
        )
    ],
    "forecasts go as far as they like": [
        Mutation(
            "stack.caching.controller", "FURTHEST", float("inf"),
            lambda: test_guards.test_a_forecast_that_blows_up_is_refused_before_a_block_is_skipped("taylorseer-lite"),
        )
    ],
    "what broke off is kept": [
        Mutation(
            Target, "forget", lambda target: None,
            lambda: test_leaks.test_what_breaks_off_in_a_block_leaves_neither_state_nor_memory(
                "svd", torch.OutOfMemoryError("CUDA out of memory")
            ),
        )
    ],
    "measured errors change nothing": [
        Mutation(Spending, "measured", lambda *_: None, test_spending.test_early_errors_buy_early_full_steps)
    ],
}  # fmt: skip
CASES = [(f"{name} {number}", each) for name, some in MUTATIONS.items() for number, each in enumerate(some)]


def broken(mutation: Mutation, patch: pytest.MonkeyPatch) -> None:
    where = mutation.owner if isinstance(mutation.owner, str) else None
    if where:
        patch.setattr(f"{where}.{mutation.name}", mutation.instead)
    else:
        patch.setattr(mutation.owner, mutation.name, mutation.instead)


@pytest.mark.parametrize("mutation", [each for _, each in CASES], ids=[name for name, _ in CASES])
def test_a_safeguard_taken_out_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mutation.fails()
    with monkeypatch.context() as patch:
        broken(mutation, patch)
        torch.manual_seed(0)
        with pytest.raises(AssertionError):
            mutation.fails()
