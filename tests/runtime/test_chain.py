"""Interceptors: in the order they are listed, added and taken back through an installer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from stack import Stack
from stack.core.installer import Installer
from stack.runtime.call import DenoiserCall, InterceptorChain, Proceed

from ..conftest import inputs, tiny_denoiser


@dataclass
class Notes:
    """Writes down when a call comes by and when its answer does; answers itself if it has one."""

    name: str
    log: list[str]
    answer: Any = None

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        self.log.append(f"> {self.name}")
        out = proceed(call) if self.answer is None else self.answer
        self.log.append(f"< {self.name}")
        return out


@dataclass
class World:
    log: list[str] = field(default_factory=list)
    chain: InterceptorChain = field(default_factory=InterceptorChain)

    def call(self, value: int = 1) -> Any:
        given = {"hidden_states": value}
        return self.chain.run(DenoiserCall(partial(self._model, **given), given))

    def _model(self, hidden_states: int) -> int:
        self.log.append("model")
        return 10 * hidden_states


def test_without_interceptors_a_call_goes_to_the_model() -> None:
    world = World()
    assert world.call(3) == 30 and world.log == ["model"]


def test_the_first_is_the_outermost_and_later_additions_stand_before_earlier_ones() -> None:
    world = World()
    world.chain.add(Installer(), Notes("quantization", world.log))
    world.chain.add(Installer(), Notes("guard", world.log), Notes("site", world.log))
    assert world.call() == 10
    assert world.log == ["> guard", "> site", "> quantization", "model", "< quantization", "< site", "< guard"]


def test_who_answers_is_the_last_to_be_asked() -> None:
    world = World()
    world.chain.add(Installer(), Notes("guard", world.log), Notes("site", world.log, answer=7), Notes("x", world.log))
    assert world.call() == 7 and world.log == ["> guard", "> site", "< site", "< guard"]


def test_a_rollback_takes_back_its_own_additions_exactly() -> None:
    world, below, above = World(), Installer(), Installer()
    first, second = Notes("below", world.log), Notes("above", world.log)
    world.chain.add(below, first)
    world.chain.add(above, second)
    assert world.chain.interceptors == (second, first)
    above.rollback()
    assert world.chain.interceptors == (first,) and world.call() == 10
    below.rollback()
    assert world.chain.interceptors == ()
    world.log.clear()
    assert world.call() == 10 and world.log == ["model"]


def test_a_call_can_be_made_for_some_samples_and_changed_arguments_reach_the_model() -> None:
    given = {"hidden_states": torch.arange(6.0).view(3, 2, 1), "timestep": torch.ones(3), "img_ids": torch.zeros(4, 3)}
    call = DenoiserCall(partial(lambda **named: named, **given), given)
    some = call.only([2, 0], ("hidden_states", "timestep"))
    assert some.latent.flatten().tolist() == [4, 5, 0, 1]
    made = some.run()
    assert made["timestep"].shape == (2,) and made["img_ids"] is given["img_ids"]
    assert call.latent is given["hidden_states"]


@pytest.mark.parametrize(
    ("method", "options", "names"),
    [
        ("svd-published", {}, ["NoGradients", "OutputGuard", "AllBlocks"]),
        ("svd", {}, ["NoGradients", "OutputGuard", "Corrector", "AllBlocks"]),
        ("predictor-corrector", {}, ["NoGradients", "OutputGuard", "Corrector", "X0Prediction"]),
        ("easycache-published", {}, ["NoGradients", "OutputGuard", "WholeModel"]),
        ("duca", {}, ["NoGradients", "OutputGuard", "Corrector", "Tokenwise"]),
        ("svd-published-blocks", {}, ["NoGradients", "OutputGuard"]),
        ("first-block-published", {}, ["NoGradients", "OutputGuard"]),
    ],
)
def test_a_cache_stands_in_this_order(method: str, options: dict[str, Any], names: list[str]) -> None:
    stack = Stack(tiny_denoiser(), steps=14).cache(method, **options).apply()
    chain = stack._target.chain
    assert [type(each).__name__ for each in chain.interceptors] == names
    stack.undo()
    assert chain.interceptors == ()


def test_the_precision_of_a_step_is_switched_behind_the_cache() -> None:
    stack = Stack(tiny_denoiser(), steps=14).quantize("int8", min_features=64, ends="keep").cache("svd")
    with torch.no_grad():
        for step in range(5):
            stack(**inputs(1 - step / 14))
    names = [type(each).__name__ for each in stack._target.chain.interceptors]
    assert names == ["NoGradients", "OutputGuard", "Corrector", "AllBlocks", "SwitchPrecision"]
    modes = [entry.context.compute_mode for entry in stack._target.journal.entries]
    assert modes[0] == (True,) and modes[-1] == (False,)
