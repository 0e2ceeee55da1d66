"""Every block, or every module, on its own: what each adds is predicted separately, and the streams keep flowing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from ...attention.cost import ATTENTION_SHARE
from ...bounds import best_speedup
from ...compat.rules.sparse import ATTENTION_CACHED_AND_SPARSE
from ...compile import compiled
from ...core.arguments import Arguments
from ...core.errors import StackError
from ...core.facts import Facts
from ...core.installer import Installer
from ...core.passes import Finding
from ...models.layout import CachedModule, Wiring, kept, present
from ...models.parallel import behind_split
from ...models.ports import Streams, returned, several
from ...runtime.call import Interceptor
from ...runtime.step import Computed
from ...runtime.target import Target
from ..contract import Installs, PolicyLike, Site, SiteState, register_site
from ..controller import CacheController, CacheSlot
from .calls import BlockCall, before_blocks
from .inside import Forward, Inside, as_it_is
from .work import token_work

OUTPUTS = 3  # at most: an attention's two streams, and what an IP-adapter adds
Given = list[torch.Tensor]  # the tensors that a module was called with


@register_site
@dataclass(frozen=True)
class PerBlockSite(Site):
    """What each block adds to each stream."""

    name: ClassVar[str] = "per-block"
    words: ClassVar[str] = "what each block adds to each stream"
    noise_feature: ClassVar[str] = "blocks"
    divisible: ClassVar[bool] = True
    part: ClassVar[str] = "block"
    needs: ClassVar[tuple[str, ...]] = ("blocks", "range")

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        text = facts.tokens - facts.image_tokens
        return SiteState(((text, facts.image_tokens) if text else (facts.image_tokens,),) * facts.blocks)

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        return PerBlock(controller)


@register_site
@dataclass(frozen=True)
class PerModuleSite(Site):
    """The output of every attention and MLP before its gate."""

    name: ClassVar[str] = "per-module"
    words: ClassVar[str] = "every attention and MLP before its gate"
    noise_feature: ClassVar[str] = "blocks"
    divisible: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = ("attention", "mlp")
    needs: ClassVar[tuple[str, ...]] = ("blocks", "modules")

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        return SiteState(_module_units(facts, self.roles)) if facts.lists else None

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        return PerModule(controller, self.roles, partial(compiled, mode=target.now.compiled))


@register_site
@dataclass(frozen=True)
class AttentionSite(PerModuleSite):
    """The output of every attention; MLPs run."""

    name: ClassVar[str] = "attention"
    words: ClassVar[str] = "every attention before its gate; MLPs run"
    roles: ClassVar[tuple[str, ...]] = ("attention",)

    def clashes(self, facts: Facts, stage: str) -> list[Finding]:
        density = facts.attention_density
        if density == 1:
            return []
        left = ATTENTION_SHARE * density
        most = best_speedup([left / (1 - ATTENTION_SHARE + left)], [math.inf])
        what = f"sparse attention has left {density:.0%} of attention: caching it saves at most {most:.2f}x"
        return [Finding.of(ATTENTION_CACHED_AND_SPARSE, stage, what, note=True)]


def _module_units(facts: Facts, roles: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Tokens of every output of every cached module; the facts must have the block lists."""
    wiring: Wiring = facts.wiring
    text, image = facts.tokens - facts.image_tokens, facts.image_tokens
    per_list = [_outputs(wiring.modules[name], roles, text, image) for name in wiring.block_lists]
    return tuple(u for count, units in zip(facts.lists, per_list, strict=True) for u in units * count)


def _outputs(
    modules: tuple[CachedModule, ...], roles: tuple[str, ...], text: int, image: int
) -> tuple[tuple[int, ...], ...]:
    """Tokens of every output of a block's modules: each role together has one for every token of the block."""
    if len(roles) > 1 and any(module.role == "both" for module in modules):
        return ((text + image,),)
    streams = (text, image) if text else (image,)
    return tuple(streams for role in roles if any(m.role == role for m in modules))


class _Decided:
    """Both sites decide once per step, at the first block, for the whole batch."""

    interceptors: tuple[Interceptor, ...] = ()

    def __init__(self, controller: CacheController):
        self.controller = controller
        self.skip = False

    @property
    def slots(self) -> list[CacheSlot]:
        """The slots that the coming blocks work for."""
        return self.controller.slots

    def begin(self, tokens: torch.Tensor) -> None:
        """The first block is reached with these tokens (B, N, D)."""
        self.controller.begin(tokens)
        self.skip = all(self.controller.decide())


class PerBlock(_Decided):
    """Caches the residual that each block adds to each stream (HyCa, FoCa; the likely reading of SVD-Cache)."""

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before every block; returns their number."""
        return before_blocks(denoiser, wiring, install, self.controller.clock, self._visit)

    def _visit(self, number: int, call: BlockCall) -> Streams:
        if number == 0:
            self.begin(call.streams[call.wiring.output_stream])
        controller, entry = self.controller, call.streams
        slots = controller.slots
        if self.skip:
            made = {name: f"{number}/{name}" for name in entry if f"{number}/{name}" in slots[0].predictors}
            return {name: entry[name] + controller.predict(key, slots) for name, key in made.items()}
        out = call.run()
        for name, tensor in out.items():
            controller.store(f"{number}/{name}", tensor - entry[name], slots)
        return out


class PerModule(_Decided):
    """Caches the outputs of attention and MLP before their gates, which are computed anew on every step (TaylorSeer,
    FORA, ToCa's state; with attention alone, PAB).

    Args:
        roles: which modules: "attention", "mlp". A projection that ends both is kept only with both.
        compile: what the blocks are compiled with.
    """

    reads_inputs: ClassVar[bool] = False  # whether a forecast wants to know what a module was given

    def __init__(
        self,
        controller: CacheController,
        roles: tuple[str, ...] = ("attention", "mlp"),
        compile: Callable[[Forward], Forward] = as_it_is,
    ):
        super().__init__(controller)
        self.roles = roles
        self.inside = Inside(compile, whole=lambda: not self.skip)
        self._time = ""  # name of the denoiser's argument
        self._per_token = False  # whether every token has a time of its own

    def begin(self, tokens: torch.Tensor) -> None:
        super().begin(tokens)
        time = self.controller.given().get(self._time)
        self._per_token = isinstance(time, torch.Tensor) and time.ndim > 1

    @property
    def _thins(self) -> bool:
        """Whether what nobody reads is given no tokens: those would not fit modulations of their own for each."""
        return self.skip and not self._per_token

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before every module; returns how many are predicted on a cached step."""
        self._time = wiring.time
        self._open(denoiser, wiring, install)
        whole = left = 0.0
        count = 0
        attends = "attention" not in self.roles
        for blocks, modules in wiring.modules.items():
            for index, block in enumerate(denoiser.get_submodule(blocks).children()):
                there = present(block, modules)
                work, chosen = token_work(block, there), kept(there, self.roles)
                spared = {path for module in chosen for path in (module.path, *module.spares)}
                whole += sum(work.values())
                left += sum(size for path, size in work.items() if path not in spared)
                for module in chosen:
                    self._place(block, f"{blocks}.{index}.{module.path}", module, install)
                    count += 1
        if not count:
            raise StackError(f"no module of roles {', '.join(self.roles)} can be cached on its own in this model")
        self.controller.cached_work = Computed(left / max(1, whole), float(attends))
        return count

    def _open(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> None:
        """Stand before the first block, where the step is decided."""
        path, first = wiring.blocks(denoiser)[0]
        arguments = Arguments(first.forward, first)
        name = wiring.ports_of(path, arguments.names).takes[wiring.output_stream]

        def opening(inner: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                self.begin(arguments.named(args, kwargs)[name])
                return inner(*args, **kwargs)

            return forward

        install.wrap_call(*behind_split(first), opening)

    def _place(self, block: nn.Module, key: str, module: CachedModule, install: Installer) -> None:
        for norm in module.norms if not self.reads_inputs else ():
            # Traced with its block, which stays in one piece there: one version for full steps, one for cached ones.
            install.wrap_call(block.get_submodule(norm), "forward", self._unread)
        for spare in module.spares:
            self.inside.wrap(block.get_submodule(spare), self._spared, install)
        self.inside.wrap(block.get_submodule(module.path), lambda inner: self._kept(inner, key), install)

    def _kept(self, inner: Callable[..., Any], key: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = self._given(key, args, kwargs)
            if self.skip:
                parts = [i for i in range(OUTPUTS) if f"{key}/{i}" in self.slots[0].predictors]
                return returned(self._forecast(key, i, given) for i in parts)
            result = inner(*args, **kwargs)
            for i, value in enumerate(several(result)):
                self._keep(key, i, value, given)
            return result

        return forward

    def _given(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        """What a forecast wants to know of a module's input: nothing here."""
        return []

    def _keep(self, key: str, index: int, value: torch.Tensor, given: Given) -> None:
        self.controller.store(f"{key}/{index}", value, self.slots)

    def _forecast(self, key: str, index: int, given: Given) -> torch.Tensor:
        return self.controller.predict(f"{key}/{index}", self.slots)

    def _unread(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """A norm nobody reads on a cached step: no tokens, only the gates it returns beside them."""

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return inner(x[:, :0] if self._thins else x, *args, **kwargs)

        return forward

    def _spared(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """A module nobody listens to on a cached step: no tokens, so that what the block makes of them is free."""
        shapes: list[torch.Size] = []

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._thins:
                given = next(x for x in [*args, *kwargs.values()] if isinstance(x, torch.Tensor))
                # Perhaps other samples than those that ran.
                return returned(given.new_empty(len(given), 0, *shape[2:]) for shape in shapes)
            out = inner(*args, **kwargs)
            shapes[:] = [value.shape for value in several(out)]
            return out

        return forward
