from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from stack import Stack
from stack.comparison import base as bases
from stack.comparison import engine as subject
from stack.comparison.base import Base, choose_base, stand_in
from stack.comparison.compare import compare
from stack.comparison.engine import PipelineEngine
from stack.comparison.rows import controls_of, plan_rows
from stack.core.errors import StackError
from stack.models.denoiser import all_denoisers
from stack.recipe import Recipe
from stack.reference.captions import captions

PROMPT, STEPS = "a red ring left of a blue star", 14
CACHED = Recipe("cached", "", "shapes-flux", STEPS, {"cache": {"interval": 4, "warmup": 2}})
ROWS = {row.name: row for row in plan_rows({"cached": ("cache",)}, STEPS)}
BASE, ALL = ROWS["base"], ROWS["all"]


@pytest.fixture
def engine(pipe: Any) -> PipelineEngine:
    return PipelineEngine(pipe, {"cached": CACHED.passes()}, STEPS)


def test_base_is_the_pipeline_itself(engine: PipelineEngine, pipe: Any) -> None:
    made = engine.generate(BASE, PROMPT, seed=5)
    same = pipe(PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(5), output_type="pt").images
    assert torch.equal(made.picture, same[0])
    assert made.kinds == ("full",) * STEPS and made.seconds > 0 and made.density == 1.0


def test_a_stack_is_taken_off_after_every_picture(engine: PipelineEngine) -> None:
    before = engine.generate(BASE, PROMPT, 5).picture
    engine.warm_up(ALL, PROMPT)
    first, second = engine.generate(ALL, PROMPT, 5), engine.generate(ALL, PROMPT, 5)
    assert first.kinds.count("full") == 2 + (STEPS - 2) // 4 and len(first.kinds) == STEPS
    assert first.cache_bytes > 0
    assert torch.equal(first.picture, second.picture)
    assert not torch.equal(first.picture, before)
    assert torch.equal(engine.generate(BASE, PROMPT, 5).picture, before)


def test_an_interrupted_picture_leaves_the_model_clean(engine: PipelineEngine, pipe: Any) -> None:
    before = engine.generate(BASE, PROMPT, 5).picture
    calls = []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = pipe.transformer.norm_out.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(ALL, PROMPT, 5)
    handle.remove()
    assert torch.equal(engine.generate(BASE, PROMPT, 5).picture, before)


def test_controls_take_fewer_steps_and_give_the_scheduler_back(engine: PipelineEngine, pipe: Any) -> None:
    scheduler, seen = pipe.scheduler, []
    pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(type(pipe.scheduler).__name__))
    euler, multistep = (engine.generate(row, PROMPT, 5) for row in controls_of(ALL, 3, single=True))
    assert euler.kinds == multistep.kinds == ("full",) * 3
    assert seen == ["FlowMatchEulerDiscreteScheduler"] * 3 + ["FlowMultistep"] * 3
    assert pipe.scheduler is scheduler
    assert not torch.equal(euler.picture, multistep.picture)


def test_prepare_counts_the_work_of_one_step(engine: PipelineEngine) -> None:
    engine.prepare(PROMPT, compile_base=False)
    assert engine.base.mode == "eager"
    # 64 image and 16 text tokens, 128 wide, one double and one single block.
    n, d = 80, 128
    assert engine.work.attention == 2 * 2 * n * n * d
    assert engine.work.linears == 12 * d * d + n * 12 * d * d + 3 * d * d + n * 12 * d * d


def test_the_stand_in_shares_weights_and_nothing_else(denoiser: Any) -> None:
    twin = stand_in(denoiser)
    assert all(a is b for a, b in zip(denoiser.parameters(), twin.parameters(), strict=True))
    assert not {id(m) for m in denoiser.modules()} & {id(m) for m in twin.modules()}


class Blocks(nn.Module):
    """A model whose compilation can be watched, or fail."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, error: Exception | None = None):
        super().__init__()
        self.error, self.compiled = error, False

    def compile_repeated_blocks(self) -> None:
        if self.error:
            raise self.error
        self.compiled = True


def test_a_model_that_does_not_compile_is_measured_eager() -> None:
    model = Blocks(RuntimeError("no C++ compiler found\nsecond line"))
    base = choose_base({"transformer": model}, lambda denoisers, steps: None, torch.device("cpu"))
    assert base.denoisers == {"transformer": model} and base.mode == "eager"
    assert base.warnings == ["base could not be compiled, measured eager: RuntimeError: no C++ compiler found"]


@pytest.mark.parametrize("slow", ["eager", "compiled"])
def test_the_faster_base_wins(slow: str) -> None:
    model = Blocks()

    def run(denoisers: Any, steps: int) -> None:
        mode = "compiled" if denoisers["transformer"].compiled else "eager"
        sum(range(3_000_000 if mode == slow else 3))

    base = choose_base({"transformer": model}, run, torch.device("cpu"))
    assert base.mode != slow
    assert base.denoisers["transformer"].compiled == (base.mode == "compiled") and not model.compiled
    assert base.step_seconds[base.mode] < base.step_seconds[slow]


@pytest.mark.parametrize(("mode", "stages"), [("compiled", ["compile", "cache"]), ("eager", ["cache"])])
def test_stacks_run_as_the_base_does(
    engine: PipelineEngine, pipe: Any, monkeypatch: pytest.MonkeyPatch, mode: str, stages: list[str]
) -> None:
    assert [p.stage for p in engine.effective(ALL)] == ["cache"]
    monkeypatch.setattr(subject, "choose_base", lambda denoisers, *_: Base(denoisers, mode, {}, [], denoisers))
    engine.prepare(PROMPT)
    seen: list[list[str]] = []
    monkeypatch.setattr(Stack, "apply", lambda stack: seen.append([p.stage for p in stack.plan.passes()]) or stack)
    engine.warm_up(ALL, PROMPT)
    assert seen[0] == stages
    assert [p.stage for p in engine.effective(ALL)] == ["cache"]  # rows are told apart by what the recipe asks for


def test_controls_have_the_fastest_exact_attention(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a faster kernel and it is measured to be faster; else they call what the base calls."""
    trials, given = bases.TRIALS, all_denoisers(pipe)
    monkeypatch.setattr(bases, "possible", lambda *_: True)
    monkeypatch.setattr(bases, "compiled", lambda denoisers: {name: bases.stand_in(d) for name, d in denoisers.items()})

    def chosen(exact_seconds: float) -> Base:
        seconds = iter([*[2.0, 1.0] * trials, *[exact_seconds] * trials])
        monkeypatch.setattr(bases, "timed", lambda run, device: (run(), next(seconds)))
        return choose_base(given, lambda denoisers, steps: None, torch.device("cpu"))

    base = chosen(0.25)
    assert base.mode == "compiled" and base.pace == 0.25
    assert [p.stage for p in Stack.of(base.controls["transformer"]).passes] == ["dense_attn", "compile"]
    again = bases.chosen_base(given, base.mode, base.step_seconds)
    assert again.pace == 0.25 and Stack.of(again.controls["transformer"]).applied
    for slower in (chosen(1.5), chosen(0.99)):  # within what timing repeats
        assert slower.pace == 1 and slower.controls == slower.denoisers and "exact" not in slower.step_seconds


def test_controls_have_it_beside_a_base_that_is_not_compiled(
    engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([1.0] * bases.TRIALS + [0.5] * bases.TRIALS)
    monkeypatch.setattr(bases, "possible", lambda *_: True)
    monkeypatch.setattr(bases, "timed", lambda run, device: (None, next(seconds)))
    engine.prepare(PROMPT, compile_base=False)
    assert engine.base.mode == "eager" and engine.base.pace == 0.5
    assert [p.stage for p in Stack.of(engine.base.controls["transformer"]).passes] == ["dense_attn", "compile"]


def test_without_controls_their_kernel_is_not_timed(engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "possible", lambda *_: True)
    monkeypatch.setattr(bases, "compiled", lambda denoisers: {name: bases.stand_in(d) for name, d in denoisers.items()})
    monkeypatch.setattr(bases, "exact", lambda *_: pytest.fail("asked for"))
    for compile_base in (True, False):
        engine.prepare(PROMPT, compile_base, controls=False)
        assert engine.base.pace == 1


def test_a_kernel_that_fails_leaves_controls_what_the_base_calls(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(bases, "exact", fail)
    base = choose_base(all_denoisers(pipe), lambda denoisers, steps: None, torch.device("cpu"), compile_too=False)
    assert base.controls == base.denoisers and base.pace == 1
    assert base.warnings == [
        "controls have the base's attention, the faster exact kernel failed: RuntimeError: no such kernel"
    ]


def test_captions_start_alike_and_differ() -> None:
    assert captions(1, 3) == [PROMPT]
    assert captions(6, 3)[:4] == captions(4, 3)
    assert len(set(captions(20, 3))) == 20
    assert captions(4, 3)[1:] != captions(4, 4)[1:]


def test_a_whole_comparison(pipe: Any) -> None:
    outcome = compare(pipe, [CACHED], name="my-model", prompts=2, steps=STEPS, compile_base=False)
    rows = {row["name"]: row for row in outcome.record["rows"]}
    assert list(rows) == ["base", "cache", "all", "all-cache", "fewer-steps", "fewer-steps-multistep"]
    assert rows["base"]["speedup"] == 1.0 and rows["base"]["psnr_db"] == 99.0
    assert 10 < rows["all"]["psnr_db"] < 99 and rows["all"]["full_steps"] == 5
    assert rows["all"]["psnr_vs_uncached_db"] == rows["all"]["psnr_db"]
    assert rows["all-cache"]["same_as"] == "base" and rows["cache"]["same_as"] == "all"
    assert rows["all"]["accuracy"] is None  # only reference models can be read back
    assert outcome.record["efficiency"] == pytest.approx(1.0)
    assert outcome.record["interaction_db"] == 0.0
    assert "svd" in outcome.plans["cached"]
    assert outcome.pictures["all"].shape == (2, 3, 16, 16)


def test_a_pass_without_use_says_so_and_takes_no_time(pipe: Any) -> None:
    idle = Recipe("idle", "", "shapes-flux", STEPS, {"sparse_attn": {"keep": 1.0}, "cache": {"interval": 4}})
    outcome = compare(pipe, [idle], name="my-model", prompts=1, steps=STEPS, compile_base=False)
    rows = {row["name"]: row for row in outcome.record["rows"]}
    assert {name: row["same_as"] for name, row in rows.items() if row["same_as"]} == {
        "sparse_attn": "base", "cache": "all", "all-sparse_attn": "all", "all-cache": "base",
    }  # fmt: skip
    assert any("keep 1" in text or "0 blocks" in text for text in rows["sparse_attn"]["warnings"])
    assert rows["cache"]["warnings"] == [] and rows["all"]["warnings"] != []


@pytest.mark.parametrize(("prompts", "steps"), [(0, 50), (3, 1), (3, 0)])
def test_too_little_to_measure_is_refused(pipe: Any, prompts: int, steps: int) -> None:
    with pytest.raises(StackError, match="at least"):
        compare(pipe, [CACHED], name="m", prompts=prompts, steps=steps)


def test_captions_begin_again_where_a_model_knows_no_more() -> None:
    known = captions(30, 3, "shapes-dit")
    assert len(set(known)) == 30
    assert captions(70, 3, "shapes-dit") == [*known, *known, *known[:10]]


@pytest.mark.parametrize(("device", "stages", "expected"), [
    ("cuda", ("compile", "cache"), [12, 12, STEPS]),
    ("cuda", ("cache",), [STEPS]),
    ("cpu", ("compile", "cache"), [STEPS]),
])  # fmt: skip
def test_on_an_accelerator_compiled_code_is_tuned_and_captured_before_it_is_timed(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, device: str, stages: tuple[str, ...], expected: list[int]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1234)
    recipe = Recipe("c", "", "shapes-flux", STEPS, {"cache": {"interval": 4, "warmup": 2}, "compile": {}})
    engine = PipelineEngine(pipe, {"c": recipe.passes()}, STEPS)
    engine.device = torch.device(device)
    calls: list[int] = []
    inner = type(pipe).__call__

    @functools.wraps(inner)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["num_inference_steps"])
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "__call__", counted)
    row = next(row for row in plan_rows({"c": stages}, STEPS) if set(row.passes) == set(stages))
    made = engine.generate(row, PROMPT, 5)
    assert calls == expected
    assert made.peak_bytes == 1234 if device == "cuda" else made.peak_bytes
