"""A small random instance of any denoiser class, and example calls of it."""

from __future__ import annotations

import inspect
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..core.errors import StackError
from ..core.parameters import parameters_of
from .examples.arguments import rules_for
from .examples.call import Call, Rule, Sizes, multiples_of
from .examples.shrink import defaults, shrunk
from .examples.weights import redraw
from .families import FamilyData, family_of
from .families.refused import REFUSED
from .plainly import plainly, with_own_attention

__all__ = ["Sizes", "Small", "samples_of", "small"]

Example = Callable[[Sizes], dict[str, Any]]
OTHER = Sizes(frames=2, rows=8, columns=4, text=7)
"""A second set of sizes, so that arguments which fit by accident are found out."""
REGISTER = "stack.models.families.register_family(FamilyData(...))"
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Small:
    """A small random instance of a denoiser class.

    Attributes:
        denoiser: in eval mode, float32, with random weights of a fixed seed under which every block matters.
        call: sizes to the keyword arguments of `denoiser.forward`, the same each time, without `return_dict`. Sizes
            that the class does not take are rounded up, or made square.
        batches: whether a batch gives what its samples give one by one.
        reason: why it does not; "" where it does.
    """

    denoiser: nn.Module
    call: Example
    batches: bool
    reason: str


@plainly()
def small(cls: type[nn.Module], config: Mapping[str, Any] | None = None) -> Small:
    """A small instance of this class: 2 or 3 blocks a list, 2 heads, fewer than 3 million weights.

    Args:
        cls: a denoiser class of diffusers, or one that is built and called as those are.
        config: configuration of a real model, whose flags and kinds of norms are kept; the class's defaults without it.

    Raises:
        StackError: the class could not be built or called. The message says what failed and where to put the data.
    """
    if reason := REFUSED.get(cls.__name__):
        raise StackError(f"{cls.__name__} has no small instance: {reason}")
    family = family_of(cls)
    reduced = _configured(cls, config or {}, family)
    denoiser = _built(cls, reduced)
    failed: list[Exception] = []
    for call in _calls(cls, reduced, family):
        try:
            _tried(denoiser, call)
        except Exception as error:  # whatever a class raises for arguments that do not fit it
            failed.append(error)
            continue
        reason = _unlike_alone(denoiser, call)
        return Small(denoiser, call, not reason, reason)
    nearest = max(failed, key=_depth)
    raise StackError(f"no example call fits {cls.__name__}: {nearest}; give rules of its arguments in {REGISTER}")


@torch.no_grad()
def samples_of(denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[list[torch.Tensor]]:
    """What the denoiser answers, sample by sample: the sample of each of its outputs (video and audio are two)."""
    given = denoiser(**arguments, return_dict=False)
    answers = [given] if isinstance(given, torch.Tensor) else [answer for answer in given if answer is not None]
    return [list(parts) for parts in zip(*(list(answer) for answer in answers), strict=False)]


def _configured(cls: type[nn.Module], given: Mapping[str, Any], family: FamilyData) -> dict[str, Any]:
    """The small configuration; what is given of entries that the class does not have is left out."""
    entries = defaults(cls)
    full = entries | dict(family.published) | {name: value for name, value in given.items() if name in entries}
    return shrunk(full) | {name: value for name, value in family.config.items() if name in entries}


def _built(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            denoiser = cls(**config)
        except Exception as error:
            raise StackError(
                f"no small {cls.__name__} could be built: {error}; give entries of its configuration in {REGISTER}"
            ) from error
    redraw(denoiser)
    return with_own_attention(denoiser).eval()


def _calls(cls: type[nn.Module], config: Mapping[str, Any], family: FamilyData) -> Iterator[Example]:
    """Every combination of the rules known for the arguments, the most usual first."""
    parameters = parameters_of(cls, "forward")
    video = cls.__name__.endswith("3DModel") if family.video is None else family.video
    rules = rules_for(parameters, family.arguments, video)
    needed = [name for name, entry in parameters.items() if entry.default is entry.empty and entry.kind in _NAMED]
    if missing := ", ".join(name for name in needed if name not in rules):
        raise StackError(
            f"{cls.__name__}.forward needs {missing}, of which nothing is known: give a rule for each in {REGISTER}"
        )
    scale = family.time_scale or (1.0 if {"img_ids", "img_shapes"} & set(parameters) else 1000.0)
    fit = family.fit or multiples_of(2 if "sample" in parameters else 1)
    for chosen in itertools.product(*rules.values()):
        yield _call_with(dict(zip(rules, chosen, strict=True)), Call(config, Sizes(), video, scale), fit)


def _call_with(rules: Mapping[str, Rule], basis: Call, fit: Callable[[Sizes], Sizes]) -> Example:
    def call(sizes: Sizes) -> dict[str, Any]:
        example = replace(basis, sizes=fit(sizes))
        made = {name: rule(name, example) for name, rule in rules.items()}
        return {name: value for name, value in made.items() if value is not None}

    return call


def _tried(denoiser: nn.Module, call: Example) -> None:
    """Raises what the class raises, or a StackError where an answer is not finite."""
    for sizes in (Sizes(), OTHER):
        for sample in samples_of(denoiser, call(sizes)):
            if not all(torch.isfinite(answer).all() for answer in sample):
                raise StackError("its answer is not finite")


def _depth(error: Exception) -> int:
    """How far into the class a call came before this was raised: the call that came furthest fits best."""
    return len(traceback.extract_tb(error.__traceback__))


def _unlike_alone(denoiser: nn.Module, call: Example) -> str:
    """Why a batch of two does not give what its samples give alone; "" where it does."""
    try:
        together = samples_of(denoiser, call(Sizes(batch=2)))
    except Exception as error:
        return f"a batch of two fails: {error}"
    for index in range(2):
        alone = samples_of(denoiser, call(Sizes(first=index)))[0]
        for one, other in zip(alone, together[index], strict=True):
            if one.shape != other.shape or not torch.allclose(one, other, atol=1e-4, rtol=1e-3):
                return "a batch of two gives other samples than one by one"
    return ""
