"""One call of a small denoiser, module by module: what each was given and what it returned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ...core.arguments import Arguments

Answer = Callable[[Mapping[str, Any]], Any]


@dataclass
class ModuleCall:
    """One call of one module.

    Attributes:
        given: its arguments by name.
        first, last: when it began and ended, counted over all calls.
    """

    path: str
    module: nn.Module
    given: Mapping[str, Any]
    first: int
    result: Any = None
    last: int = 0


@dataclass
class Trace:
    """All calls of one call of the denoiser, in the order they began.

    Attributes:
        given: the arguments of the denoiser.
        output: all that it returns.
    """

    given: Mapping[str, Any]
    calls: list[ModuleCall] = field(default_factory=list)
    output: Any = None

    def __post_init__(self) -> None:
        self._by_path: dict[str, list[ModuleCall]] = defaultdict(list)

    def add(self, call: ModuleCall) -> None:
        """A call has begun."""
        self.calls.append(call)
        self._by_path[call.path].append(call)

    def of(self, path: str) -> list[ModuleCall]:
        """The calls of one module."""
        return self._by_path.get(path, [])


def traced(denoiser: nn.Module, given: Mapping[str, Any]) -> Trace:
    """Call a denoiser, and record every call of its modules."""
    trace, names, open_calls = Trace(given), _names(denoiser), list[ModuleCall]()
    clock = iter(range(10**9))

    def begun(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = ModuleCall(path, module, names[path].named(args, kwargs), next(clock))
        open_calls.append(call)
        trace.add(call)

    def ended(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        call = open_calls.pop()
        call.result, call.last = result, next(clock)

    with ExitStack() as hooks:
        for path, module in denoiser.named_modules():
            if path:
                handle = module.register_forward_pre_hook(partial(begun, path), with_kwargs=True)
                hooks.callback(handle.remove)
                hooks.callback(module.register_forward_hook(ended).remove)
        trace.output = output_of(denoiser, given)
    return trace


def _names(denoiser: nn.Module) -> dict[str, Arguments]:
    return {path: Arguments(module.forward, module) for path, module in denoiser.named_modules() if path}


@torch.no_grad()
def output_of(denoiser: nn.Module, given: Mapping[str, Any]) -> Any:
    """All that a denoiser returns."""
    return denoiser(**given, return_dict=False)


@contextmanager
def answering(denoiser: nn.Module, answers: Mapping[str, Answer]) -> Iterator[None]:
    """Let these modules answer with a function of their named arguments instead of what they compute."""
    modules = {path: denoiser.get_submodule(path) for path in answers}
    try:
        for path, module in modules.items():
            vars(module)["forward"] = _answered(Arguments(module.forward, module), answers[path])
        yield
    finally:
        for module in modules.values():
            vars(module).pop("forward", None)


def _answered(arguments: Arguments, answer: Answer) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer(arguments.named(args, kwargs))


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in a value, nested ones too."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors(item)]
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []


def same(one: Any, other: Any) -> bool:
    """Whether two values hold the same tensors, bit for bit."""
    mine, theirs = tensors(one), tensors(other)
    return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))
