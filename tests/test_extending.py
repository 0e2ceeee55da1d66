"""Extensions from outside the package, as CONTRIBUTING.md describes them: a cache method, a backend, a rule, a pass.

Each is at most 40 lines. A site is in `tests/caching/test_own_site.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from stack import Stack
from stack.caching.methods import PRESETS
from stack.caching.policy import Policy
from stack.compat.rules import RULES, rule_named
from stack.core.facts import Facts, Machine
from stack.core.installer import Installer
from stack.core.passes import ORDER, Applied, Finding, field_options, register_stage
from stack.core.rule import Evidence, Rule
from stack.passes import PASSES
from stack.quant.backends import BACKENDS
from stack.quant.schemes import Scheme
from stack.recipe import parse_recipe, recipe_toml
from stack.runtime.target import Target

from .conftest import picture, tiny_pipe

STEPS, LINES = 14, 40

# ---- a cache method: one row

METHOD = Policy.of(site="residual", order=2, gains=(1.0, 1.0), basis="taylor", coordinate="step", interval=4)

# ---- a rule

DROPPED_BLOCK = Rule(
    "dropped-block",
    "a block that never runs",
    "Its output is missing on every step, full or cached.",
    (Evidence("1 of 4 blocks is a quarter of the work", "count of blocks"),),
    "Said in the plan.",
    "plan",
    ("drop_block",),
)


# ---- a backend: linears rounded to 8 bits and held as they come out, for an error without a saving


class FakeRounding:
    """Rounds weights per output channel and multiplies in floating point."""

    name = "fake"
    rounds_in_steps = False

    def refuses(self, scheme: Scheme, machine: Machine) -> str:
        return "" if scheme.name == "int8-weight" else "the fake backend rounds weights only: use int8-weight"

    def kernel(self, scheme: Scheme, machine: Machine) -> str:
        return "the product of the rounded weight"

    def multiple(self, scheme: Scheme, machine: Machine) -> int:
        return 1

    def prepare(self, scheme: Scheme, device: torch.device) -> None:
        """Nothing can fail."""

    def convert(self, linears: Sequence[nn.Linear], scheme: Scheme) -> list[nn.Module]:
        return [self._rounded(linear) for linear in linears]

    def held_bytes(self, module: nn.Module) -> int:
        return module.get_parameter("weight").nbytes

    def _rounded(self, linear: nn.Linear) -> nn.Module:
        made = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
        step = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        made.weight = nn.Parameter((linear.weight.detach() / step).round() * step, requires_grad=False)
        made.bias = linear.bias
        return made


# ---- a pass: one block never runs


@dataclass(frozen=True)
class DropBlock:
    """Leaves one block out. Attributes: block: its number."""

    block: int = 0
    stage: ClassVar[str] = "drop_block"

    def options(self) -> dict[str, Any]:
        return field_options(self)

    def describe(self, facts: Facts) -> list[str]:
        return [f"block {self.block} of {facts.blocks} never runs"]

    def check(self, facts: Facts) -> list[Finding]:
        return [Finding.of(DROPPED_BLOCK, self.stage, f"block {self.block} is left out", note=True)]

    def facts_after(self, facts: Facts) -> Facts:
        return facts

    def apply(self, target: Target, install: Installer) -> Applied:
        _, block = target.wiring.blocks(target.denoiser)[self.block]
        install.wrap_call(block, "forward", lambda inner: _streams)
        return Applied("1 block left out")


def _streams(hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
    return encoder_hidden_states, hidden_states


# ---- end of the extensions


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    PRESETS["mine"], BACKENDS["fake"], RULES[DROPPED_BLOCK.name] = METHOD, FakeRounding(), DROPPED_BLOCK
    register_stage(DropBlock.stage, before="compile")
    PASSES[DropBlock.stage] = DropBlock
    yield
    del PRESETS["mine"], BACKENDS["fake"], RULES[DROPPED_BLOCK.name], PASSES[DropBlock.stage]
    ORDER.remove(DropBlock.stage)


def plain_picture(pipe: Any) -> torch.Tensor:
    with Stack(pipe, steps=STEPS) as stack:
        return picture(stack, STEPS)


@pytest.mark.parametrize("extension", [FakeRounding, DropBlock])
def test_they_are_short(extension: type) -> None:
    assert len(inspect.getsource(extension).splitlines()) <= LINES


def test_a_method_is_a_row() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("mine")
    assert "mine, 5 of 14 steps full (" in stack.explain()
    with stack:
        picture(stack, STEPS)
        assert "".join(step.kind[0] for step in stack.report().steps) == "fffcccfcccfccc"


def test_a_backend_is_asked_for_by_name_and_refuses_by_its_own_words() -> None:
    pipe = tiny_pipe()
    plain = plain_picture(pipe)
    stack = Stack(pipe, steps=STEPS).quantize("int8-weight", backend="fake", min_features=16)
    assert "int8-weight by fake: asked for; the product of the rounded weight" in stack.explain()
    with stack:
        error = float((picture(stack, STEPS) - plain).abs().mean())
    assert 0 < error < 0.02
    assert torch.equal(plain_picture(pipe), plain)
    with pytest.raises(Exception, match="the fake backend rounds weights only"):
        _ = Stack(pipe, steps=STEPS).quantize("int8", backend="fake", min_features=16).plan


def test_a_pass_has_its_stage_its_rule_and_its_recipe() -> None:
    pipe = tiny_pipe()
    plain = plain_picture(pipe)
    recipe = parse_recipe({"steps": STEPS, "cache": {"method": "reuse"}, "drop_block": {"block": 1}}, "mine")
    assert parse_recipe({**{"steps": STEPS}, **recipe.stages}, "mine").stages == recipe.stages
    assert "[drop_block]\nblock = 1" in recipe_toml(recipe)
    stack = Stack.from_recipe(recipe, pipe)
    text = stack.explain()
    assert text.index("1. drop_block: block 1 of") < text.index("2. cache: reuse")
    assert "1 of 4 blocks is a quarter of the work" in text and rule_named("dropped-block") is DROPPED_BLOCK
    with stack:
        assert not torch.equal(picture(stack, STEPS), plain)
    assert torch.equal(plain_picture(pipe), plain)
