"""Reads what a denoiser call's features depend on: weights, adapters, attention, precision, prompt, caller."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn

from .fingerprint import Content, WeightsWatch, version_of
from .stamp import Conditions

PLAIN = (str, int, float, bool, type(None))


class ConditionsReader:
    """The conditions of the current denoiser call, read when somebody asks and once per call.

    Args:
        conditioning: arguments of the denoiser that are the same on every step of a request.
        passes: how often passes have changed so far.

    Attributes:
        calling: whether a call of the denoiser is going on.
    """

    def __init__(self, denoiser: nn.Module, conditioning: tuple[str, ...], passes: Callable[[], int]):
        self._weights, self._attention = WeightsWatch(denoiser), AttentionWatch(denoiser)
        self._prompt, self._passes = Conditioning(conditioning), passes
        self._request, self._branch, self._given = -1, "", dict[str, Any]()
        self._known: Conditions | None = None
        self.calling = False

    def begin(self, request: int, branch: str, given: Mapping[str, Any]) -> None:
        """A call of the denoiser begins, with these arguments."""
        self._request, self._branch, self._given, self._known = request, branch, dict(given), None
        self.calling = True

    def end(self) -> None:
        """The call is over: its arguments are let go."""
        self._given, self._known, self.calling = {}, None, False

    @property
    def asked_for(self) -> Hashable:
        """What tells the current request from others: its number, and what it is asked for."""
        return self._request, self().conditioning

    def __call__(self) -> Conditions:
        """As they are now."""
        # A pass may be exchanged in the middle of a call that asked before.
        if self._known is None or self._known.passes != self._passes():
            self._known = Conditions(
                passes=self._passes(),
                weights=self._weights(self._request),
                adapters=self._weights.adapters,
                attention=self._attention(self._request),
                precision=autocast(),
                conditioning=self._prompt(self._branch, self._given),
                caller=caller(),
            )
        return self._known


class AttentionWatch:
    """Tells attention processors and their settings apart."""

    def __init__(self, denoiser: nn.Module):
        self._denoiser, self._request = denoiser, -1
        self._layers: list[Any] = []

    def __call__(self, request: int) -> Hashable:
        """What computes attention in each layer, at a step of this request."""
        if request != self._request:
            self._request = request
            self._layers = [m for m in self._denoiser.modules() if isinstance(m, AttentionModuleMixin | Attention)]
        return tuple(_settings(layer.processor) for layer in self._layers)


def _settings(processor: Any) -> Hashable:
    """A processor's class and its plain attributes, and those of the one it stands before."""
    own = vars(processor)
    plain = tuple(sorted((name, value) for name, value in own.items() if _is_plain(value)))
    return type(processor), plain, _settings(own["inner"]) if "inner" in own else ()


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (is_dataclass(value) and type(value).__hash__ is not None)


class Conditioning:
    """Tells what a request is asked for apart: by content, read only where other tensors come than before."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names
        self._known: dict[str, tuple[list[tuple[weakref.ref[torch.Tensor], int]], Content]] = {}

    def __call__(self, branch: str, given: Mapping[str, Any]) -> Hashable:
        """Shapes and content of a call's constant arguments, and its plain settings."""
        tensors = [x for name in self._names if isinstance(x := given.get(name), torch.Tensor)]
        seen, content = self._known.get(branch, ([], None))
        same = len(seen) == len(tensors) and all(
            ref() is x and version == version_of(x) for (ref, version), x in zip(seen, tensors, strict=True)
        )
        if content is None or not same:
            content = Content(tensors)
            self._known[branch] = [(weakref.ref(x), version_of(x)) for x in tensors], content
        settings = tuple((name, repr(value)) for name, value in given.items() if isinstance(value, dict) and value)
        return tuple(x.shape for x in tensors), settings, content


def autocast() -> str:
    """What autocast makes of the current call; "" where it is off."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return ", ".join(f"{kind} {torch.get_autocast_dtype(kind)}" for kind in kinds)


def caller() -> Hashable:
    """The current thread, and the asyncio task in it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop in this thread
        task = None
    return threading.get_ident(), None if task is None else id(task)
