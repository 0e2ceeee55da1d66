"""A reference model behind a stack, and how a request is put to it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from stack import Stack
from stack.reference.load import load, reference
from training.evaluate import held_out_scenes

from .mix import ADAPTERS, Request

SIZES = {"shapes-flux": (0, 32, 48)}
RANK = 4


@dataclass
class World:
    """One stack over one model.

    Attributes:
        make: a new pipeline of the model.
        build: the stack over a pipeline, with this adapter.
        edited: path of a parameter that stays a plain one under the stack.
        folder: where the adapters are.
    """

    make: Callable[[], Any]
    build: Callable[[Any, str], Stack]
    edited: str
    folder: Path
    pipe: Any = field(init=False)
    stack: Stack = field(init=False)

    def __post_init__(self) -> None:
        self.pipe = self.make()
        self.stack = self.build(self.pipe, ADAPTERS[0])

    @property
    def weight(self) -> torch.Tensor:
        """The parameter that is edited."""
        return self.pipe.transformer.get_parameter(self.edited)

    def another(self) -> World:
        """The same, from the beginning."""
        return World(self.make, self.build, self.edited, self.folder)

    def draw(self, request: Request, broken: Callable[[int], None] | None = None) -> torch.Tensor:
        """The pictures of a request. `broken` is called after every step and may raise."""

        def behind(step: int) -> None:
            if step == request.edited:
                scale(self.weight, 2.0)
            if broken:
                broken(step)

        try:
            with after_steps(self.pipe, behind) as told:
                return self._call(request, told)
        finally:
            if request.edited >= 0:
                scale(self.weight, 0.5)

    def _call(self, request: Request, told: dict[str, Any]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(request.seed + i) for i in range(len(request.prompts))]
        size = {"height": request.size, "width": request.size} if request.size else {}
        options = {"num_inference_steps": request.steps, "generator": generators, "output_type": "latent"}
        return self.stack(list(request.prompts), **options, **size, **told, return_dict=False)[0]


def scale(weight: torch.Tensor, factor: float) -> None:
    """Edit it in place; by a power of two, so that it comes back bit for bit."""
    with torch.no_grad():
        weight.mul_(factor)


@contextmanager
def after_steps(pipe: Any, behind: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Arguments of a call that has `behind(step)` called after every step.

    A pipeline without a callback is watched from its scheduler, for the calls of this thread only.
    """
    if "callback_on_step_end" in inspect.signature(super_call(pipe)).parameters:

        def callback(_: Any, step: int, *__: Any) -> dict[str, Any]:
            behind(step)
            return {}

        yield {"callback_on_step_end": callback}
        return
    mine, seen = threading.get_ident(), iter(range(10**9))

    def hook(*_: Any) -> None:
        if threading.get_ident() == mine:
            behind(next(seen))

    handle = pipe.transformer.register_forward_hook(hook)
    try:
        yield {}
    finally:
        handle.remove()


def super_call(pipe: Any) -> Any:
    """The `__call__` of a pipeline with the most to say: the shapes pipelines forward to diffusers' own."""
    own = type(pipe).__call__
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(own).parameters.values()):
        return super(type(pipe), pipe).__call__
    return own


def world_of(model: str, method: str, folder: Path, options: dict[str, Any] | None = None) -> World:
    """int8, an adapter beside it, and a cache, over a shipped model; two random adapters are written to `folder`."""

    def make() -> Any:
        pipe = load(model, torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return tiny_world(make, method, folder, options or {})


def tiny_world(make: Callable[[], Any], method: str, folder: Path, options: dict[str, Any]) -> World:
    """The same over any pipeline."""
    pipe = make()
    for number, name in enumerate(ADAPTERS):
        save_adapter(pipe.transformer, folder / f"{name}.safetensors", number)
    quantize = {"min_features": 64} if pipe.transformer.config.get("num_layers") == 1 else {}

    def build(over: Any, adapter: str) -> Stack:
        stack = Stack(over, steps=14).quantize("int8", **quantize).cache(method, **options)
        return stack.distill(str(folder / f"{adapter}.safetensors"), switchable=True)

    return World(make, build, last_linear(pipe.transformer), folder)


def last_linear(denoiser: nn.Module) -> str:
    """Path of the weight of the head's last linear, which no pass replaces."""
    return [f"{path}.weight" for path, module in denoiser.named_children() if isinstance(module, nn.Linear)][-1]


def save_adapter(denoiser: nn.Module, path: Path, seed: int) -> None:
    """Write a random LoRA for queries and values."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_v")) and "block" in name:
            down = torch.randn(RANK, module.in_features, generator=generator) / module.in_features**0.5
            state[f"transformer.{name}.lora_A.weight"] = down
            state[f"transformer.{name}.lora_B.weight"] = (
                torch.randn(module.out_features, RANK, generator=generator) / 20
            )
    save_file(state, path)


def prompts_of(model: str) -> list[str]:
    """Eight prompts of a shipped model."""
    known = reference(model)
    return [known.prompt(scene) for scene in held_out_scenes(8, known.sample)]
