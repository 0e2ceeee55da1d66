"""The sparse attention pass: what it refuses, predicts, installs, counts and takes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from stack import Stack
from stack.attention.cost import CPU
from stack.attention.maps import Grid
from stack.attention.outlook import spans
from stack.attention.sparse_attn import SparseAttention
from stack.attention.sparsity import FIRST, LAST, TOO_DENSE, SparsityPolicy
from stack.compat.calibrated_for import conditions
from stack.core.errors import StackError
from stack.core.facts import Facts, Machine
from stack.core.installer import Installer
from stack.core.passes import Applied
from stack.model_facts import facts_of
from stack.models.schedule import uniform
from stack.runtime.report import Journal
from stack.runtime.target import Target

from ..clocks import advance, clock_of
from ..conftest import inputs, tiny_denoiser
from ..wirings import FLUX

SIDE = 18
FACTS = Facts(
    family="flux", machine=Machine("cpu"), dtype="float32", blocks=6, width=192, heads=3, head_dim=64,
    image_tokens=4096, text_tokens=16, steps=50,
)  # fmt: skip
SMALL = SparseAttention(0.5, block=64, even_if_slower=True)


def target_of(model: FluxTransformer2DModel, steps: int = 10) -> Target:
    return Target(model, FLUX, facts_of(model, FLUX, None, steps), clock_of(uniform(steps)), Journal(), lambda: 0)


def call(target: Target, sigma: float) -> torch.Tensor:
    context = advance(target.clock, sigma, (1, SIDE * SIDE, 12))
    given = inputs(sigma, SIDE)
    target.journal.begin(context)
    target.conditions.begin(context, given)
    with torch.inference_mode():
        return target.denoiser(**given, return_dict=False)[0]


def installed(steps: int = 10, wanted: SparseAttention = SMALL) -> tuple[Target, Installer, Applied]:
    target, install = target_of(tiny_denoiser(), steps), Installer()
    return target, install, wanted.apply(target, install)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"keep": 0}, "keep must be in .* got 0"),
        ({"keep": 1.5}, "keep must be in .* got 1.5"),
        ({"keep": -0.1}, "keep must be in .* got -0.1"),
        ({"keep": float("nan")}, "sparse_attn.keep: expected a finite number, got nan"),
        ({"keep": "half"}, "sparse_attn.keep: expected a finite number, got 'half'"),
        ({"keep": True}, "sparse_attn.keep: expected a finite number, got True"),
        ({"max_mass": 0.0}, "max_mass must be in .* got 0.0: it is the share of the mass left out"),
        ({"max_mass": 1.0}, "max_mass must be in .* got 1.0"),
        ({"max_mass": float("nan")}, "sparse_attn.max_mass: expected a finite number, got nan"),
        ({"keep": 0.5, "max_mass": 0.05}, "keep=0.5 and max_mass=0.05: expected one of them, leave one out"),
        ({"max_error": 1.0}, "max_error must be in .* got 1.0: it is the relative error of attention's outputs"),
        ({"max_mass": 0.1, "max_error": 0.1}, "max_mass=0.1 and max_error=0.1: expected one of them, leave one out"),
        ({"keep": 0.5, "max_mass": 0.1, "max_error": 0.1}, "expected one of them, leave two out"),
        (
            {"max_error": 0.05, "producer": "window"},
            "max_error needs exact scores, got producer='window': take 'sampled'",
        ),
        (
            {"max_mass": 0.05, "producer": "pooled"},
            "max_mass needs exact scores, got producer='pooled': take 'sampled'",
        ),
        ({"max_error": 0.05, "kernel": "sparge"}, "which kernel='sparge' leaves out: take max_mass"),
        ({"producer": "pool"}, "unknown producer of block maps 'pool'.* did you mean 'pooled'"),
        ({"order": "column"}, "unknown order of tokens 'column'"),
        ({"block": 0}, "block must be a multiple of 64 tokens, got 0"),
        ({"block": 100}, "block must be a multiple of 64 tokens, got 100"),
        ({"block": 128.0}, "sparse_attn.block: expected a whole number, got 128.0"),
        ({"dense_first": -1}, "dense_first: expected a whole number of at least 0 .* got -1"),
        ({"dense_last": -1}, "dense_last: expected a whole number of at least 0 .* got -1"),
    ],
)
def test_bad_values_are_named(given: dict[str, Any], told: str) -> None:
    with pytest.raises(StackError, match=told):
        SparseAttention(**given)


def test_no_step_need_stay_dense() -> None:
    policy = SparseAttention(0.5, dense_first=0, dense_last=0).policy
    assert policy.sparse_steps(20) == 20 and SparseAttention(0.5).policy.first_steps(20) == 2


def test_good_values_are_taken() -> None:
    assert SparseAttention() == SparseAttention(0.5) and SparseAttention(max_mass=0.05).keep is None
    assert SparseAttention(max_mass=0.05).options() == {"max_mass": 0.05}
    assert SparseAttention(1) == SparseAttention(keep=1.0, block=None, dense_first=None, dense_last=1)


def test_nothing_speaks_against_a_long_sequence() -> None:
    assert SparseAttention(0.5).check(FACTS) == []
    assert SparseAttention(0.35, block=128).check(replace(FACTS, image_tokens=4096)) == []


@pytest.mark.parametrize(
    ("wanted", "changes", "told"),
    [
        (SparseAttention(0.5), {"image_tokens": 256}, "none of which would be dropped"),
        (SparseAttention(0.5), {"image_tokens": 576}, "592 tokens runs at 1.06x"),
        (SparseAttention(0.75), {"image_tokens": 4096}, "density 0.75"),
        (SparseAttention(0.5), {"machine": Machine("cuda")}, "4112 tokens, pays from 8192"),
        (SparseAttention(1.0), {}, "keep 1 keeps every block"),
        (SparseAttention(0.5), {"steps": 2}, "first 1 and last 1 are dense"),
        (SparseAttention(0.5), {"lacks": {"attention": "linear in all layers"}}, "linear in all layers"),
    ],
)
def test_what_would_not_pay_stays_dense_and_says_why(
    wanted: SparseAttention, changes: dict[str, Any], told: str
) -> None:
    (finding,) = wanted.check(replace(FACTS, **changes))
    assert finding.repair == "stays dense" and finding.replacement is None and not finding.fatal
    assert told in str(finding)


def test_unknown_tokens_are_a_note() -> None:
    (finding,) = SparseAttention(0.5).check(replace(FACTS, image_tokens=0, text_tokens=0))
    assert finding.note and not finding.repair and "unknown" in finding.what


def test_the_rule_can_be_overruled() -> None:
    assert SparseAttention(0.75, even_if_slower=True).check(FACTS) == []


def test_description_has_the_figures() -> None:
    lines = SparseAttention(0.5).describe(FACTS)
    assert "keeps 50 %" in lines[0]
    assert "44 of 50 steps sparse: the first 5 and the last 1" in lines[1]
    assert lines[2] == "16 query blocks of 256 by 64 key blocks of 64: density 0.50 on sparse steps"
    assert "stays dense: density 0.75" in SparseAttention(0.75).describe(FACTS)[2]


def test_density_is_the_mean_over_steps() -> None:
    after = SparseAttention(0.5).facts_after(FACTS)
    # 16 text queries see all 4,112 keys, 4,096 image queries see 32 of 64 blocks and the text.
    sparse = (16 * 4112 + 4096 * (2048 + 16)) / 4112**2
    assert after.attention_density == pytest.approx((44 * sparse + 6) / 50)
    assert after.switches == (0.1, 0.98) and SparseAttention(0.5, dense_last=0).facts_after(FACTS).switches == (0.1,)
    assert replace(after, attention_density=1.0, switches=()) == FACTS
    assert SparseAttention(0.75).facts_after(FACTS) == FACTS


def test_installs_on_every_attention_layer_and_rolls_back() -> None:
    model, install = tiny_denoiser(), Installer()
    target = target_of(model)
    applied = SMALL.apply(target, install)
    assert applied.summary.startswith("2 of 2 attention layers, keeps 50 %")
    install.rollback()
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        assert type(block.attn.processor) is FluxAttnProcessor
    assert "forward" not in vars(model)
    fresh = target_of(tiny_denoiser())
    for sigma in (1.0, 0.9, 0.8):
        assert torch.equal(call(target, sigma), call(fresh, sigma))


def test_dense_steps_are_bit_identical_and_sparse_ones_are_not() -> None:
    target, _, applied = installed()
    plain = target_of(tiny_denoiser())
    same = [torch.equal(call(target, s), call(plain, s)) for s in target.clock.timetable.schedule.sigmas]
    assert same == [True] + [False] * 8 + [True]
    report = applied.report()
    assert report["sparse_calls"] == 16 and report["dense_calls"] == {FIRST: 2, LAST: 2}
    per_call = ((340 - 320) * 340 + 320 * (3 * 64 + 20)) / 340**2
    assert report["density"] == pytest.approx((16 * per_call + 4) / 20)
    assert target.journal.warnings == []


@pytest.mark.parametrize("others", [(), ("quantize",)], ids=["alone", "over int8"])
def test_in_a_stack_every_layer_is_sparse_between_the_ends(others: tuple[str, ...]) -> None:
    stack = Stack(tiny_denoiser(), steps=10).add(SMALL)
    if others:
        stack.quantize("int8", min_features=64)
    for sigma in uniform(10).sigmas:
        stack(**inputs(sigma, SIDE))
    figures = stack.report().passes["sparse_attn"]
    assert figures["sparse_calls"] == 16 and figures["dense_calls"] == {FIRST: 2, LAST: 2}
    assert stack.report().warnings == []


def test_a_budget_of_mass_is_kept_and_reported() -> None:
    """More of it leaves out more, and never more than asked for; the error is within the reported bound."""
    plain, found = call(target_of(tiny_denoiser()), 0.5), []
    for most in (0.05, 0.3, 0.6):
        target, _, applied = installed(wanted=SparseAttention(max_mass=most, block=64, even_if_slower=True))
        error = (call(target, 0.5) - plain).norm() / plain.norm()
        figures = applied.report()
        if figures["sparse_calls"]:
            assert 0 < figures["dropped_mass"] <= most
            assert figures["error_bound"] == pytest.approx(2 * figures["dropped_mass"])
        found.append((figures["density"], float(error)))
    assert [density for density, _ in found] == sorted((density for density, _ in found), reverse=True)
    assert found[-1][0] < found[0][0] <= 1 and found[-1][1] > found[0][1]


def test_a_budget_of_error_is_kept_and_reported() -> None:
    """The denoiser's own error grows with what attention's outputs may lose, which is within the budget."""
    plain, found = call(target_of(tiny_denoiser()), 0.5), []
    for most in (0.02, 0.1, 0.4):
        target, _, applied = installed(wanted=SparseAttention(max_error=most, block=64, even_if_slower=True))
        error = (call(target, 0.5) - plain).norm() / plain.norm()
        figures = applied.report()
        if figures["sparse_calls"]:
            assert 0 < figures["output_error"] <= most
        found.append((figures["density"], float(error)))
    assert [density for density, _ in found] == sorted((density for density, _ in found), reverse=True)
    assert found[-1][0] < found[0][0] <= 1 and found[-1][1] > found[0][1]


def test_explain_says_what_a_budget_of_error_holds_for() -> None:
    lines = SparseAttention(max_error=0.05).describe(FACTS)
    assert lines[0].startswith("outputs of sampled queries are off by at most 5 %: keeps the fewest of the image key")
    assert lines[3].startswith("error: at most 0.05 of the outputs of sampled queries, measured in every call;")


def test_a_guess_is_not_reported_as_dropped_mass() -> None:
    target, _, applied = installed(wanted=replace(SMALL, producer="pooled"))
    call(target, 0.5)
    figures = applied.report()
    assert figures["sparse_calls"] == 2 and figures["dropped_mass"] is None and figures["error_bound"] is None


def test_where_no_map_is_within_the_budget_the_call_is_dense_bit_for_bit() -> None:
    target, _, applied = installed(wanted=SparseAttention(max_mass=1e-6, block=64, even_if_slower=True))
    assert torch.equal(call(target, 0.5), call(target_of(tiny_denoiser()), 0.5))
    assert applied.report()["dense_calls"] == {TOO_DENSE: 2} and applied.report()["density"] == 1.0


def test_a_map_that_does_not_pay_is_not_used() -> None:
    policy, grid = SparsityPolicy(0.0, max_mass=0.05), Grid(16, 4096, 64, 4)
    assert policy.dense_map(grid, 0.6, CPU) == "" and policy.dense_map(grid, 0.7, CPU) == TOO_DENSE
    told = replace(policy, even_if_slower=True)
    assert told.dense_map(grid, 0.7, CPU) == "" and told.dense_map(grid, 1.0, CPU) == TOO_DENSE


def test_a_call_with_some_dense_heads_pays_as_long_as_the_mean_does() -> None:
    """What a dense head takes is what a sparse one of share 1 / 1.12 would."""
    policy, grid = SparsityPolicy(0.0, max_mass=0.05), Grid(16, 4096, 64, 4)
    assert policy.densest(CPU) == pytest.approx(1 / 1.12) and replace(policy, even_if_slower=True).densest(CPU) == 1
    assert policy.dense_map(grid, (0.2 + 0.2 + 1 / 1.12) / 3, CPU) == ""
    assert policy.dense_map(grid, (0.2 + 2 / 1.12) / 3, CPU) == TOO_DENSE


def test_a_budget_of_mass_promises_no_time_and_switches_all_the_same() -> None:
    wanted = SparseAttention(max_mass=0.05)
    assert wanted.facts_after(FACTS) == replace(FACTS, switches=(0.1, 0.98))
    lines = wanted.describe(FACTS)
    assert lines[0].startswith("leaves out at most 5 % of the softmax mass: keeps the fewest of the image key blocks")
    assert "density at least 0.07 on sparse steps" in lines[2]
    assert "loses 5% of its attention is off by at most 0.10 times the spread" in lines[3]


def test_error_falls_as_more_is_kept() -> None:
    plain = call(target_of(tiny_denoiser()), 0.5)
    errors = []
    for keep in (0.2, 0.4, 0.6, 0.8):
        target, _, _ = installed(wanted=replace(SMALL, keep=keep))
        errors.append(((call(target, 0.5) - plain).norm() / plain.norm()).item())
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0


def test_same_request_twice_gives_the_same_bits() -> None:
    target, _, _ = installed(steps=4)
    first, second = ([call(target, s) for s in target.clock.timetable.schedule.sigmas] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_request_without_a_sparse_call_is_warned_about() -> None:
    target, _, applied = installed(steps=2, wanted=SMALL)
    for sigma in target.clock.timetable.schedule.sigmas:
        call(target, sigma)
    assert applied.report()["sparse_calls"] == 0
    assert target.journal.warnings == [f"0 of 4 attention calls sparse: 2 {FIRST}, 2 {LAST}"]


def test_shapes_are_judged_again_at_run_time() -> None:
    target, _, applied = installed(wanted=SparseAttention(0.5))  # 324 tokens: too short, by the rule
    plain = target_of(tiny_denoiser())
    assert torch.equal(call(target, 0.5), call(plain, 0.5))
    ((reason, count),) = applied.report()["dense_calls"].items()
    assert count == 2 and "340 tokens" in reason


def test_foreign_processors_are_looked_through() -> None:
    class Other(FluxAttnProcessor):
        """Someone else's."""

    model = tiny_denoiser()
    other = Other()
    model.single_transformer_blocks[0].attn.set_processor(other)
    applied = SMALL.apply(target_of(model), Installer())
    assert applied.summary.startswith("2 of 2 attention layers") and applied.warnings == []
    assert model.single_transformer_blocks[0].attn.processor is other


def test_back_ends_of_others_are_named() -> None:
    model = tiny_denoiser()
    for block, name in ((model.transformer_blocks[0], "sage"), (model.single_transformer_blocks[0], "native")):
        block.attn.processor._attention_backend = AttentionBackendName(name)
    said = " ".join(SMALL.apply(target_of(model), Installer()).warnings)
    assert "1 layer left alone: sage does not go through torch" in said
    assert "calls that a pass takes do not use native, others do" in said


TABLE = {
    "a.0.attn": (0.3, 0.25, 0.4),
    "a.1.attn": (0.25, 0.3, 0.3),
    "a.2.attn": (0.5, 0.9, 1.0),
    "b.0.attn": (0.9, 1, 1),
}


def test_a_table_of_shares_is_planned_layer_by_layer() -> None:
    """The mean over layers and sparse steps, where a share that does not pay counts as dense."""
    wanted = SparseAttention(max_error=0.1, layers=TABLE)
    grid = Grid(16, 4096, 64, 4)
    first, middle, last = 12, 17, 15  # steps 5 to 48 of 50, by third
    sparse = (
        first * sum(map(grid.density, (0.3, 0.25, 0.5))) + first
        + middle * sum(map(grid.density, (0.25, 0.3))) + 2 * middle
        + last * sum(map(grid.density, (0.4, 0.3))) + 2 * last
    )  # fmt: skip
    assert wanted.facts_after(FACTS).attention_density == pytest.approx((sparse / 4 + 6) / 50)
    assert replace(wanted, layers=None).facts_after(FACTS).attention_density == 1.0


def test_explain_says_which_layers_are_sparse_and_why_others_are_not() -> None:
    lines = SparseAttention(max_error=0.1, layers=TABLE).describe(FACTS)
    assert lines[3] == "2 layers (a.0-1.attn) sparse, keeping 25 to 40 %"
    assert lines[4].startswith("1 layer (a.2.attn) sparse in the first third, keeping 50 to 50 %; dense: density 0.9")
    assert lines[5].startswith("1 layer (b.0.attn) never sparse; dense: density 0.9") and "under 1.25x" in lines[5]
    assert lines[6].startswith("error: at most 0.1 of the outputs of sampled queries, as measured when the shares were")


def test_a_table_in_which_no_layer_pays_is_dense() -> None:
    (finding,) = SparseAttention(max_error=0.1, layers={"b.0.attn": (0.8, 0.9, 1.0)}).check(FACTS)
    assert finding.repair == "stays dense" and "density 0.81" in str(finding)


def test_a_table_of_another_stack_is_left_out_and_the_budget_measured_again() -> None:
    stamp = conditions(replace(FACTS, image_tokens=1024))
    wanted = SparseAttention(max_error=0.1, layers=TABLE, calibrated_for=stamp)
    (finding,) = wanted.check(FACTS)
    assert finding.replacement == SparseAttention(max_error=0.1) and "image_tokens 1024, now 4096" in finding.what
    assert replace(wanted, calibrated_for=conditions(replace(FACTS, weight_bits=8))).check(FACTS) == []


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ((0.5, 0.5), "expected .* list of 3, each a finite number"),
        ((0.5, 0.0, 0.5), "expected shares in .* for a, got"),
        ((0.5, 1.5, 0.5), "at most 1"),
        (0.5, "expected"),
    ],
)
def test_bad_tables_are_named(shares: Any, told: str) -> None:
    with pytest.raises(StackError, match=told):
        SparseAttention(max_error=0.1, layers={"a": shares})


def test_paths_that_differ_in_a_number_are_told_together() -> None:
    assert spans(["b.0.x", "b.2.x", "b.1.x", "b.7.x", "c.3.y", "mid"]) == "b.0-2, 7.x, c.3.y, mid"
