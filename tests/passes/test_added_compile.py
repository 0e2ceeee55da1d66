"""Rounded activations on CUDA are compiled by default: planned for an assumed machine, put on and taken off here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.compile import Compile
from stack.core.facts import Facts, Machine
from stack.core.plan import make_plan
from stack.model_facts import facts_of
from stack.models.preexisting import COMPILED
from stack.quant.quantize import Quantize

from ..conftest import tiny_denoiser
from ..test_plan import FACTS

H100 = Machine("cuda", "NVIDIA H100", capability=(9, 0))
ON_CUDA = replace(FACTS, machine=H100, image_tokens=4096, width=3072)
RULE = "rounded-eagerly"


def stages(passes: list[Any], **changes: Any) -> list[str]:
    return [p.stage for p in make_plan(replace(ON_CUDA, **changes), passes).passes()]


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_it_is_added_below_the_cache_and_said(scheme: str) -> None:
    plan = make_plan(ON_CUDA, [Cache("svd"), Quantize(scheme)])
    assert [p.stage for p in plan.passes()] == ["quantize", "compile", "cache"]
    assert plan.passes()[1] == Compile() and plan.facts_after.compiled == "default"
    (finding,) = [f for f in plan.findings if f.rule == RULE]
    assert finding.what.startswith(f"{scheme} rounds activations") and "130 s" in finding.why
    assert finding.repair == "compile() is added; compile('off') leaves it out"
    with pytest.raises(StackError, match=rf"quantize: {scheme} rounds activations .*\(rule rounded-eagerly\)"):
        make_plan(ON_CUDA, [Quantize(scheme)], strict=True)


@pytest.mark.parametrize(
    ("passes", "changes"),
    [
        ([Quantize("nf4")], {}),
        ([Quantize("int8-weight")], {}),
        ([Quantize("int8", backend="bitsandbytes")], {}),
        ([Quantize("int8")], {"machine": FACTS.machine}),
        ([Quantize("int8")], {"carries": (COMPILED,)}),
    ],
)
def test_what_does_not_gain_is_left_alone(passes: list[Any], changes: dict[str, Any]) -> None:
    assert stages(passes, **changes) == ["quantize"]


def test_mixes_count_by_their_parts() -> None:
    assert stages([Quantize("nf4", ends="int8")]) == ["quantize", "compile"]
    assert stages([Quantize("nf4", layers={"a.b": "int8"})]) == ["quantize", "compile"]


def test_no_is_an_answer() -> None:
    plan = make_plan(ON_CUDA, [Quantize("int8"), Compile("off")], strict=True)
    assert plan.passes() == (Quantize("int8"), Compile("off")) and plan.facts_after.compiled == ""
    assert [(f.stage, f.note) for f in plan.findings if f.rule == RULE] == [("compile", True)]
    mine = Compile("max-autotune-no-cudagraphs")
    assert make_plan(ON_CUDA, [Quantize("int8"), mine], strict=True).passes()[1] == mine
    assert not make_plan(FACTS, [Quantize("int8"), Compile("off")]).findings, "nothing to say on a CPU"


@pytest.fixture
def assumed(monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A stack that plans for CUDA and runs here: only the facts are another machine's. Nothing is compiled before
    a block is called."""

    def on_cuda(*of: Any) -> Facts:
        return replace(facts_of(*of), machine=H100, image_tokens=4096)

    monkeypatch.setattr("stack.planner.facts_of", on_cuda)
    return Stack(tiny_denoiser()).quantize("int8", backend="native", min_features=64).cache("taylorseer")


def wrapped(stack: Stack) -> bool:
    """Whether the compiling pass has its hands on the blocks."""
    return any(len(layer.install) == 3 for layer in stack._layers if layer.wanted.stage == "compile")


def layers(stack: Stack) -> list[str]:
    return list(stack.report().summaries)


def test_explain_report_and_undo(assumed: Stack) -> None:
    before = {name: tensor.clone() for name, tensor in assumed.denoiser.state_dict().items()}
    assert "2. compile: 2 blocks, mode default" in assumed.explain()
    assert [p.stage for p in assumed.passes] == ["quantize", "cache"], "what was asked for"
    assumed.apply()
    assert layers(assumed) == ["quantize", "compile", "cache"] and wrapped(assumed)
    assert any("compile() is added" in text and RULE in text for text in assumed.report().warnings)
    assert assumed.report().summaries["compile"].startswith("2 blocks compiled")
    assumed.undo()
    after = assumed.denoiser.state_dict()
    assert not wrapped(assumed) and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert layers(assumed.apply()) == ["quantize", "compile", "cache"]


def test_undo_of_the_added_stage_turns_it_off(assumed: Stack) -> None:
    assumed.apply().undo("compile")
    assert not wrapped(assumed) and layers(assumed) == ["quantize", "compile", "cache"]
    assert assumed.report().summaries["compile"] == "off: 0 blocks compiled, as asked for"
    assert Compile("off") in assumed.passes
    assumed.undo("compile")
    assert wrapped(assumed) and Compile("off") not in assumed.passes, "the plan decides again"


def test_undo_and_replace_below_and_above_it(assumed: Stack) -> None:
    assumed.apply().undo("cache")
    assert layers(assumed) == ["quantize", "compile"] and wrapped(assumed)
    assumed.replace(Quantize("nf4", backend="native", min_features=64))
    assert layers(assumed) == ["quantize"] and not wrapped(assumed)
    assumed.replace(Quantize("int8", backend="native", min_features=64))
    assert layers(assumed) == ["quantize", "compile"] and wrapped(assumed)
    assumed.undo("quantize")
    assert layers(assumed) == [] and not wrapped(assumed)


def test_replace_takes_its_place(assumed: Stack) -> None:
    mine = Compile("max-autotune-no-cudagraphs")
    assumed.apply().replace(mine)
    assert assumed.plan.passes()[1] == mine and mine in assumed.passes and wrapped(assumed)
    assert RULE not in assumed.explain()
    assumed.replace(Compile("off"))
    assert not wrapped(assumed)
    with pytest.raises(StackError, match="no stage 'distill' here: the stack has quantize, cache, compile"):
        assumed.undo("distill")


def test_a_saved_stack_keeps_it(assumed: Stack, tmp_path: Path) -> None:
    assumed.undo("cache").apply().save(tmp_path)
    assert "[compile]" in (tmp_path / "recipe.toml").read_text()
    assert Stack.load(tmp_path, tiny_denoiser()).passes == (Compile(),)
