"""Token-wise caching, ToCa and DuCa: between full steps the MLPs see some of the tokens, or no block runs at all.

A full step keeps every module's output before its gate, and the hidden state that enters the head. A conservative step
runs the blocks with their modules replaced, so that norms, shifts and gates follow the current time: attention is
reused, the MLP computed for the chosen tokens and written into what is kept. An aggressive step hands the last hidden
state to the head. No attention map is looked at, so that fused attention stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from ...compile import compiled
from ...core.facts import Facts
from ...core.installer import Installer
from ...models.layout import Wiring, kept, present
from ...models.ports import Streams
from ...runtime.call import DenoiserCall, Interceptor, Proceed
from ...runtime.step import NO_BLOCK, Computed
from ...runtime.target import Target
from ..contract import Installs, PolicyLike, Site, SiteState, register_site
from ..controller import CacheController
from ..noise_schedule import Levels
from ..schedules import Schedule
from ..tokenwise.cycles import AGGRESSIVE, CONSERVATIVE, FULL_STEP, Cycle, fill
from ..tokenwise.tokens import TokenChoices
from .bypass import Bypass
from .calls import BlockCall, before_blocks
from .inside import Forward, Inside, as_it_is
from .modules import Modules
from .token_selector import Place, TokenSelector
from .work import token_work


@register_site
@dataclass(frozen=True)
class TokenSite(TokenChoices, Site):
    """Modules, some tokens computed."""

    name: ClassVar[str] = "tokens"
    all_tokens: ClassVar[bool] = True
    words: ClassVar[str] = "every attention and MLP before its gate, and the last hidden state before the head"
    noise_feature: ClassVar[str] = "blocks"
    needs: ClassVar[tuple[str, ...]] = ("blocks", "range", "modules", "tokens")

    def even_schedule(self, interval: int, warmup: int) -> Schedule:
        return Cycle(interval, warmup, self.cycle, self.pace)

    def kinds(self, policy: PolicyLike, steps: int, levels: Levels = ()) -> str:
        """What each step is, see `stack.caching.tokenwise.cycles`."""
        made = policy.schedule_for(steps, (), levels)
        return made.kinds(steps) if isinstance(made, Cycle) else fill(made.full_steps(steps), steps, self.cycle)

    def lines(self, policy: PolicyLike, facts: Facts) -> list[str]:
        kinds = self.kinds(policy, facts.steps, facts.levels)
        counted = f"{kinds.count('c')} steps conservative, {kinds.count('a')} aggressive: {kinds}"
        return [counted, self.token_words]

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        """Attention and MLP of every block; ages, and scores of values, per token of an MLP."""
        if not facts.lists:
            return None
        tokens = facts.tokens * sum(facts.lists)
        scores = tokens * (2 if self.select == "values" else 1) * 4 // facts.item_bytes  # in float32
        return SiteState(((facts.image_tokens,),), kept=2 * tokens * facts.width + scores)

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        head_dim, halves = target.facts.head_dim, target.wiring.halves
        selector = TokenSelector(controller, self, policy.schedule.interval, head_dim, halves, target.grid)

        def kinds(steps: int) -> str:
            return self.kinds(policy, steps, target.clock.sigma_schedule.levels)

        return Tokenwise(controller, kinds, selector, partial(compiled, mode=target.now.compiled))


class Tokenwise:
    """Wraps the denoiser, every block, and every module in it.

    Args:
        kinds: of the steps of a request with so many, see `stack.caching.tokenwise.cycles`.
        selector: chooses the tokens.
        compile: what the blocks are compiled with.
    """

    def __init__(
        self,
        controller: CacheController,
        kinds: Callable[[int], str],
        selector: TokenSelector,
        compile: Callable[[Forward], Forward] = as_it_is,
    ):
        self.controller, self.kinds, self.selector = controller, kinds, selector
        self.interceptors: tuple[Interceptor, ...] = (self,)
        self.bypass = Bypass()
        self.modules = Modules(controller, selector)
        self.inside = Inside(compile, whole=lambda: not self.modules.conservative)
        self.kind = FULL_STEP
        self._mlps = 0.0  # their share of the blocks' linears

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Put it there; returns the number of modules that a conservative step replaces."""
        count, whole, mlps = 0, 0.0, 0.0
        for part, name in enumerate(wiring.block_lists):
            blocks = list(denoiser.get_submodule(name).children())
            for index, block in enumerate(blocks):
                modules = tuple(present(block, wiring.modules[name]))
                attentions = {m.path for m in modules if m.role == "attention"}
                # A projection that ends attention and MLP brings the block's attention with it.
                ends = kept(modules, ("attention", "mlp"))
                work = token_work(block, modules)
                mlp = sum(size for path, size in work.items() if path not in attentions)
                whole, mlps = whole + sum(work.values()), mlps + mlp
                for module in ends:
                    count += 1
                    depth = index / max(1, len(blocks) - 1)
                    place = Place(f"{name}.{index}.{module.path}", count, part, depth)
                    if module.role != "attention":
                        self.selector.add(place, mlp)
                    for path, wrapper in self.modules.wrappers(module, place, modules):
                        self.inside.wrap(block.get_submodule(path), wrapper, install)
        self._mlps = mlps / max(1.0, whole)
        self.bypass.install(wiring.idle(denoiser), install)
        last = len(wiring.blocks(denoiser)) - 1
        clock = self.controller.clock
        before_blocks(denoiser, wiring, install, clock, lambda number, call: self._visit(call, number == last))
        return count

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        controller = self.controller
        controller.begin(call.latent)
        kind = self.kinds(controller.now.steps)[controller.now.step]
        # Whatever the schedule says, nothing is reused where nothing is kept.
        conservative = kind == CONSERVATIVE
        controller.cached_work = Computed(self._mlps * self.selector.chosen_share, 0.0) if conservative else NO_BLOCK
        self.kind = kind if all(controller.decide(partial=conservative)) else FULL_STEP
        self.modules.conservative = self.kind == CONSERVATIVE
        return self.bypass.run(call, proceed, controller.now.branch, self.kind == AGGRESSIVE)

    def _visit(self, call: BlockCall, last: bool) -> Streams:
        controller, stream = self.controller, call.wiring.output_stream
        if self.kind == AGGRESSIVE:
            return {**call.streams, stream: controller.predict(stream, controller.slots)} if last else call.streams
        out = call.run()
        if last:
            controller.store(stream, out[stream], controller.slots, measure=self.kind == FULL_STEP)
        return out
