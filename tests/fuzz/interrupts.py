"""Interrupts at any line of the package inside apply(), undo(), replace() and freeze().

`python -m tests.fuzz.interrupts --count 1000 --seed 0` prints how many of each were placed, and how many went wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import stack as package
from stack import Stack
from stack.caching.cache import Cache
from stack.quant.quantize import Quantize

from ..conftest import inputs, tiny_denoiser
from ..lora import save_lora

ROOT = str(Path(package.__file__).parent)
CHANGING = ("core/changed.py", "core/installer.py", "core/stand_in.py", "runtime/layers.py", "runtime/mounted.py")


@contextmanager
def interrupted_at(line: int) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt before the n-th line that runs inside the package; notes the files of those that ran."""
    ran: list[str] = []

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            ran.append(frame.f_code.co_filename)
            if len(ran) == line:
                raise KeyboardInterrupt
        return local

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(ROOT) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield ran
    finally:
        sys.settrace(before)


class World:
    """A denoiser, its output and what can be seen of it, with and without a stack."""

    def __init__(self, folder: Path) -> None:
        self.lora = str(folder)
        save_lora(tiny_denoiser(), folder)
        self.begin()

    def begin(self) -> None:
        """With a new denoiser, which carries nothing."""
        self.denoiser = tiny_denoiser()
        self.plain = self.output()
        self.seen = looked_at(self.denoiser)

    def output(self) -> torch.Tensor:
        with torch.no_grad():
            return self.denoiser(**inputs()).sample

    def stack(self) -> Stack:
        made = Stack(self.denoiser, steps=20).distill(self.lora).quantize("int8-weight", min_features=64)
        return made.distill(self.lora, switchable=True).sparse_attn(even_if_slower=True).cache("svd")


def looked_at(denoiser: nn.Module) -> list[Any]:
    """What a stack could leave behind: modules, their attributes and processors, bits of the weights."""
    weights = [(name, tensor.data_ptr(), tensor._version) for name, tensor in denoiser.state_dict().items()]
    modules = [(path, id(m), sorted(vars(m)), len(m._state_dict_hooks)) for path, m in denoiser.named_modules()]
    return [weights, modules, [id(m.processor) for m in denoiser.modules() if "processor" in vars(m)]]


def actions(world: World, stack: Stack) -> dict[str, Callable[[], Any]]:
    return {
        "apply": stack.apply,
        "undo": stack.undo,
        "undo a stage": lambda: stack.undo("quantize"),
        "replace": lambda: stack.replace(Quantize("int4-weight", min_features=64)),
        "replace the cache": lambda: stack.replace(Cache("fora")),
        "freeze": stack.freeze,
    }


def complaints(world: World, name: str, line: int) -> tuple[list[str], bool]:
    """What is wrong after an interrupt before this line, and whether it came."""
    stack = world.stack()
    action = actions(world, stack)[name]
    if name != "apply":
        stack.apply()
    came = False
    try:
        with interrupted_at(line):
            action()
    except KeyboardInterrupt:
        came = True
    wrong = []
    whole = [layer.wanted.stage for layer in stack._layers] == [p.stage for p in stack.plan.passes()]
    if stack._layers.final:
        world.begin()
        return ([] if whole else [f"{name}, line {line}: frozen, but not whole"]), came
    if not (stack.applied and whole) and looked_at(world.denoiser) != world.seen:
        wrong.append(f"{name}, line {line}: neither with the stack nor without it")
    if stack.applied != (looked_at(world.denoiser) != world.seen):
        wrong.append(f"{name}, line {line}: applied is {stack.applied}")
    stack.undo()
    if looked_at(world.denoiser) != world.seen or not torch.equal(world.output(), world.plain):
        wrong.append(f"{name}, line {line}: undo() did not end at the original")
    if wrong:
        world.begin()
    return wrong, came


def lines_of(world: World, name: str) -> tuple[list[int], list[int]]:
    """The lines of the package that an action runs, by number, and those that change the model."""
    stack = world.stack()
    action = actions(world, stack)[name]
    if name != "apply":
        stack.apply()
    with interrupted_at(0) as ran:
        action()
    world.begin()
    lines = list(range(1, len(ran) + 1))
    return lines, [line for line in lines if ran[line - 1].endswith(CHANGING)]


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Place so many interrupts; returns how many came in each action, and what went wrong."""
    drawn, placed, wrong = random.Random(seed), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        names = list(actions(world, world.stack()))
        lines = {name: lines_of(world, name) for name in names}
        for number in range(count):
            name = names[number % len(names)]
            found, came = complaints(world, name, drawn.choice(drawn.choice(lines[name])))
            placed[name] += came
            wrong += found
    return placed, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    placed, wrong = run(given.count, given.seed)
    print(f"{sum(placed.values())} interrupts: " + ", ".join(f"{n} in {name}" for name, n in placed.items()))
    print(f"{len(wrong)} went wrong", *wrong[:20], sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
