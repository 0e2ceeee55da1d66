"""What a per-module cache keeps: attention and feed-forward of every block, and what is spared where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..layout import CachedModule, kept, present
from ..ports import several
from .arguments import called_with, close
from .blocks import BlockList, is_stream
from .linears import ATTENTION, MLP, attends
from .streams import Blocks, Unproven
from .trace import Answer, ModuleCall, Trace, answering, output_of, same

BOTH = "both"
NONE, SOME = slice(0), slice(1, 3)  # tokens that are given instead of all


class ModuleProof:
    """The modules of the blocks of a small model, and the proof that their outputs can stand in for them."""

    def __init__(self, denoiser: nn.Module, trace: Trace, blocks: Blocks, roles: Mapping[str, str]):
        """`roles` are those of the linears, by path in the denoiser."""
        self.denoiser, self.trace, self.blocks, self.roles = denoiser, trace, blocks, roles

    def of_lists(self) -> dict[str, tuple[CachedModule, ...]]:
        """The modules by list.

        Raises:
            Unproven: a list has none, or what they returned does not give the same output.
        """
        found = {one.path: self._of_list(one) for one in self.blocks.lists}
        if empty := [path for path, modules in found.items() if not modules]:
            raise Unproven(f"no attention or feed-forward that gives a whole stream in {', '.join(empty)}")
        for roles in ((ATTENTION, MLP), (ATTENTION,)):
            self._prove(found, roles)
        return found

    @torch.no_grad()
    def _prove(self, found: Mapping[str, tuple[CachedModule, ...]], roles: tuple[str, ...]) -> None:
        answers: dict[str, Answer] = {}
        for one in self.blocks.lists:
            for call in one.calls:
                for module in kept(present(call.module, found[one.path]), roles):
                    answers |= self._kept(call.path, module)
        with answering(self.denoiser, answers):
            if not same(output_of(self.denoiser, self.trace.given), self.trace.output):
                raise Unproven("modules that answer with what they returned give another output")

    def _of_list(self, one: BlockList) -> tuple[CachedModule, ...]:
        found: dict[str, CachedModule] = {}
        for call in one.calls:
            for module in self._of_block(call):
                known = found.get(module.path, module)
                norms = tuple(norm for norm in known.norms if norm in module.norms)
                found[module.path] = CachedModule(module.path, module.role, module.spares, norms, module.values)
        return tuple(found.values())

    def _of_block(self, block: ModuleCall) -> Iterator[CachedModule]:
        inside = [call for call in self._outermost(block) if any(map(is_stream, several(call.result)))]
        attentions = [call for call in inside if attends(call.module) and not self._reads_conditions(block, call)]
        mlps = [call for call in inside if self._is_mlp(call)]
        tail = [call for call in inside if self.roles.get(call.path) == MLP]
        ends = [] if mlps or not attentions else tail[-1:]
        for call in ends:
            spares = tuple(_inside(block, other) for other in (*attentions, *tail[:-1]))
            joint = CachedModule(_inside(block, call), BOTH, spares, values=self._values(block, call))
            if self._holds(block, joint):
                yield self._with_norms(block, joint)
        # Where no linear is in a feed-forward, that is in the attention too.
        in_block = [role for path, role in self.roles.items() if path.startswith(f"{block.path}.")]
        alone = MLP not in in_block and len(attentions) == 1 and attentions[0] is inside[-1]
        for call in (*attentions, *mlps):
            role = MLP if call in mlps else BOTH if alone else ATTENTION
            values = self._values(block, call) if role == MLP else ""
            yield self._with_norms(block, CachedModule(_inside(block, call), role, values=values))

    def _outermost(self, block: ModuleCall) -> list[ModuleCall]:
        """Calls of the block's children, once each; of what is in a list instead of the list."""
        paths = [
            f"{block.path}.{name}"
            for name, part in block.module.named_children()
            if len(self.trace.of(f"{block.path}.{name}")) == 1
        ]
        return sorted((self.trace.of(path)[0] for path in paths), key=lambda call: call.first)

    def _reads_conditions(self, block: ModuleCall, call: ModuleCall) -> bool:
        """Whether attention is given tokens that are none of the streams: cross-attention."""
        streams = set(self.blocks.ports_at(block.path).takes.values())
        others = [value for name, value in block.given.items() if name not in streams and is_stream(value)]
        given = [value for value in call.given.values() if is_stream(value) and value.shape[1] > 1]
        return any(value is other for value in given for other in others)

    def _is_mlp(self, call: ModuleCall) -> bool:
        roles = [role for path, role in self.roles.items() if path.startswith(f"{call.path}.")]
        return len(roles) > 1 and set(roles) == {MLP}

    def _values(self, block: ModuleCall, call: ModuleCall) -> str:
        """The linear that makes the attention values of as many tokens as a module is given."""
        tokens = next((t.shape[1] for t in call.given.values() if is_stream(t)), 0)
        for path, role in self.roles.items():
            made = self.trace.of(path)[0].result
            named = path.rpartition(".")[2] in ("to_v", "add_v_proj")
            if named and role == ATTENTION and path.startswith(f"{block.path}.") and made.shape[1] == tokens:
                return path[len(block.path) + 1 :]
        return ""

    def _with_norms(self, block: ModuleCall, module: CachedModule) -> CachedModule:
        """The module with the modules that make its input and nothing else's."""
        norms = []
        begin = min(self.trace.of(f"{block.path}.{path}")[0].first for path in (module.path, *module.spares))
        for call in self._outermost(block):
            x = next(iter(call.given.values()), None)
            if call.last > begin or not is_stream(x) or attends(call.module):
                continue
            narrowed = CachedModule(module.path, module.role, module.spares, (_inside(block, call),))
            if not any(path.startswith(f"{call.path}.") and r in (ATTENTION, MLP) for path, r in self.roles.items()):
                norms += [_inside(block, call)] if self._holds(block, narrowed) else []
        return CachedModule(module.path, module.role, module.spares, tuple(norms), module.values)

    def _kept(self, block: str, module: CachedModule, tokens: slice = NONE) -> dict[str, Answer]:
        """Answers as on a cached step: what was kept, and no tokens, or some, from what nobody else reads."""
        answers: dict[str, Answer] = {}
        for spare in module.spares:
            answers[f"{block}.{spare}"] = partial(_value, _tokens(self.trace.of(f"{block}.{spare}")[0].result, tokens))
        for norm in module.norms:
            answers[f"{block}.{norm}"] = partial(_narrowed, self.denoiser.get_submodule(f"{block}.{norm}"), tokens)
        result = self.trace.of(f"{block}.{module.path}")[0].result
        return answers | {f"{block}.{module.path}": partial(_value, result)}

    @torch.no_grad()
    def _holds(self, block: ModuleCall, module: CachedModule) -> bool:
        """Whether a block gives the same where a module is kept."""
        try:
            with answering(self.denoiser, self._kept(block.path, module)):
                return same(called_with(block.module, block.given), block.result)
        except Exception:  # whatever a block makes of no tokens: it reads them
            return False

    @torch.no_grad()
    def token_by_token(self, modules: Mapping[str, Sequence[CachedModule]]) -> str:
        """Why feed-forwards cannot be given some tokens only; "" where they can."""
        for one in self.blocks.lists:
            if all(module.role == ATTENTION for module in modules[one.path]):
                return f"no feed-forward of its own in {one.path}"
            for call in one.calls:
                for module in present(call.module, modules[one.path]):
                    if module.role != ATTENTION and not self._takes_some(call, module):
                        return f"{module.path} of {one.path} cannot be given some tokens only"
        return ""

    def _takes_some(self, block: ModuleCall, module: CachedModule) -> bool:
        """Whether a module's norms, given some tokens, hand it those, and it returns what it makes of each."""
        path, given = f"{block.path}.{module.path}", list[torch.Tensor]()
        call = self.trace.of(path)[0]
        if not isinstance(call.result, torch.Tensor):
            return False

        def noting(named: Mapping[str, Any]) -> Any:
            given.append(next(iter(named.values())))
            return call.result

        narrowed = CachedModule(module.path, module.role, (), module.norms)
        answers = self._kept(block.path, narrowed, SOME) | {path: noting}
        for spare in module.spares:
            answers[f"{block.path}.{spare}"] = partial(_value, _lent(self.trace.of(f"{block.path}.{spare}")[0].result))
        first, *rest = call.given.values()
        try:
            with answering(self.denoiser, answers):
                called_with(block.module, block.given)
            some = call.module(first[:, SOME], *rest)
        except Exception:  # whatever a block makes of fewer tokens
            return False
        handed = given[0].shape == first[:, SOME].shape and (module.role == BOTH or close(given[0], first[:, SOME]))
        return handed and close(some, call.result[:, SOME])


def _inside(block: ModuleCall, call: ModuleCall) -> str:
    return call.path[len(block.path) + 1 :]


def _tokens(value: Any, some: slice) -> Any:
    return tuple(_tokens(item, some) for item in value) if isinstance(value, tuple) else value[:, some]


def _lent(value: Any) -> Any:
    """Some tokens of what a module returned, stream after stream: all of them in the first."""
    if not isinstance(value, tuple):
        return value[:, SOME]
    return (torch.cat(value, 1)[:, SOME], *(one[:, :0] for one in value[1:]))


def _value(value: Any, given: Mapping[str, Any]) -> Any:
    return value


def _narrowed(module: nn.Module, tokens: slice, given: Mapping[str, Any]) -> Any:
    """What a norm returns for some tokens."""
    first, *names = given
    return type(module).forward(module, given[first][:, tokens], **{name: given[name] for name in names})
