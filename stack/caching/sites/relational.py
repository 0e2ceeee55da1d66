"""Modules whose inputs measure how far their outputs have moved: Relational Feature Caching (arXiv 2602.19506)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from ...compile import compiled
from ...core.facts import Facts
from ...core.installer import Installer
from ...models.layout import CachedModule, Wiring
from ...models.ports import Streams
from ...runtime.target import Target
from ..contract import Installs, PolicyLike, SiteState, register_site
from ..controller import CacheController, CacheSlot
from .calls import BlockCall, before_blocks, take
from .inside import Forward, as_it_is
from .per_module import Given, PerModule, PerModuleSite

FIRST = "first"  # key of the first module's input


@register_site
@dataclass(frozen=True)
class RelationalSite(PerModuleSite):
    """Modules, with the inputs that measure how far they have moved."""

    name: ClassVar[str] = "relational"
    words: ClassVar[str] = "every attention and MLP before its gate, moved as far as its input tells"

    def wants(self, policy: PolicyLike) -> tuple[str, ...]:
        gated = ("modulation", "rows", "range") if policy.gate else ()
        return (*super().wants(policy), *gated)

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        held = super().state(facts, policy)
        if held is None:
            return None
        first = ((facts.image_tokens,),) if policy.gate else ()  # what its gate looks at is kept first
        return replace(held, units=(*first, *held.units), stored=sum(held.features) * facts.width)

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        return RelationalModules(controller, partial(compiled, mode=target.now.compiled))


class RelationalModules(PerModule):
    """Attention and MLP as `PerModule`, with the length of every increment taken from the module's input.

    With O and I a module's output and input, t the last full step and t' the one before, a cached step takes

        O(t) + s |I - I(t)| d / |d|,    s = |O(t) - O(t')| / |I(t) - I(t')|,

    d being what the forecast adds to O(t). Norms are over tokens and channels of one sample. A cached step's inputs
    exist, since the streams keep flowing through what is predicted; a projection that ends attention and MLP has that
    of the two. With a gate each sample is decided on its own, by the relative L1 error of the forecast of the first
    module's input, and where only some samples run, every block is called once for them and once for the others.
    """

    reads_inputs = True

    def __init__(self, controller: CacheController, compile: Callable[[Forward], Forward] = as_it_is):
        super().__init__(controller, compile=compile)
        self._active: list[CacheSlot] = []
        self._rows: tuple[list[int], list[int]] = ([], [])  # those that run, those that do not
        self._inputs: dict[str, torch.Tensor] = {}

    @property
    def slots(self) -> list[CacheSlot]:
        return self._active

    def _open(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> None:
        before_blocks(denoiser, wiring, install, self.controller.clock, self._visit)

    def _visit(self, number: int, call: BlockCall) -> Streams:
        slots = self.controller.slots if number else self._decide(call)
        ran, skipped = self._rows
        if not (ran and skipped):
            self._active, self.skip = slots, not ran
            return call.run()
        whole: Streams = {}
        for rows, self.skip in ((ran, False), (skipped, True)):
            self._active = [slots[i] for i in rows]
            for name, tensor in call.run(take(call.streams, rows), rows).items():
                whole.setdefault(name, tensor.new_empty(len(slots), *tensor.shape[1:]))[rows] = tensor
        return whole

    def _decide(self, call: BlockCall) -> list[CacheSlot]:
        controller = self.controller
        controller.begin(call.streams[call.wiring.output_stream])
        slots, gated = controller.slots, controller.new_gate is not None
        if not gated:
            skips = controller.decide()
        else:
            first = call.wiring.modulation(call.block, call.given)
            missed = controller.ranks.mean_ratios([self._missed(c, first[i : i + 1]) for i, c in enumerate(slots)])
            skips = controller.decide(changes=missed)
        ran, skipped = ([i for i, skip in enumerate(skips) if skip is wanted] for wanted in (False, True))
        self._rows = ran, skipped
        if gated and ran:
            controller.store(FIRST, first[ran], [slots[i] for i in ran], measure=False)
        return slots

    def _missed(self, slot: CacheSlot, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """How far the forecast of the first module's input is off, and the input."""
        if FIRST not in slot.predictors:
            return None
        return first - self.controller.predict(FIRST, [slot]), first

    def _place(self, block: nn.Module, key: str, module: CachedModule, install: Installer) -> None:
        super()._place(block, key, module, install)
        if module.spares:  # what it is given itself is not computed on a cached step
            spare = block.get_submodule(module.spares[0])
            install.wrap_call(spare, "forward", lambda inner: self._noted(inner, key), traced=False)

    def _noted(self, inner: Callable[..., Any], key: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._inputs[key] = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
            return inner(*args, **kwargs)

        return forward

    def _given(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        if key in self._inputs:
            return [self._inputs.pop(key)]
        return [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]

    def _keep(self, key: str, index: int, value: torch.Tensor, given: Given) -> None:
        part = f"{key}/{index}"
        for i, slot in enumerate(self.slots):
            mine, x, kept = self._of(value, i), self._of(_input(given, index, value.shape), i), slot.kept
            past = slot.predictors.get(part)
            if past is not None and past.ready:
                kept[f"{part}/rate"] = _ratio(self._size(mine - past.last), self._size(x - kept[f"{part}/in"]))
        super()._keep(key, index, value, given)
        for i, slot in enumerate(self.slots):
            x = self._of(_input(given, index, value.shape), i)
            slot.kept[f"{part}/in"] = x.to(slot.predictors[part].kept_in)

    def _forecast(self, key: str, index: int, given: Given) -> torch.Tensor:
        part, values = f"{key}/{index}", []
        for i, slot in enumerate(self.slots):
            value, rate = self.controller.predict(part, [slot]), slot.kept.get(f"{part}/rate")
            if rate is not None:
                last, then = slot.predictors[part].last, slot.kept[f"{part}/in"]
                x = self._of(_input(given, index, self._whole(value.shape)), i)
                longer = _ratio(rate * self._size(x - then), self._size(value - last))
                value = (last + (value - last) * longer.to(value.dtype)).to(value.dtype)
            values.append(value)
        return values[0] if len(values) == 1 else torch.cat(values)

    def _of(self, tensor: torch.Tensor, i: int) -> torch.Tensor:
        """What belongs to a slot."""
        return tensor if self.controller.new_gate is None else tensor[i : i + 1]

    def _size(self, x: torch.Tensor) -> torch.Tensor:
        """Norm of every sample (B, N, D), over the tokens of all processes, in float32: (B, 1, 1)."""
        own = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
        return self.controller.ranks.norms(own)

    def _whole(self, shape: torch.Size) -> torch.Size:
        """Shape of all slots' features together."""
        return shape if self.controller.new_gate is None else torch.Size((len(self.slots), *shape[1:]))


def _input(given: Given, index: int, shape: torch.Size) -> torch.Tensor:
    """The argument that becomes output `index`: joint attention takes its streams in the order it returns them."""
    fits = index < len(given) and given[index].shape[:2] == shape[:2]
    return given[index] if fits else given[0]


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a / b, and 0 where b is 0: an input that did not move measures nothing."""
    return torch.nan_to_num(a / b, nan=0.0, posinf=0.0)
