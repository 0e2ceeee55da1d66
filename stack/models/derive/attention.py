"""Which modules attend over the latent's tokens, and where these lie in the sequence.

Attention that answers with its values mixes no tokens. So queries and keys that change with the latent are those of its
own tokens, in every module and behind any number of blocks, whatever the order in which they were put together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..layout import SelfAttention, numbered
from ..sdpa import Answering, SdpaCall
from ..small import Sizes, Small
from .linears import attends
from .trace import output_of, tensors

SIZES = (
    Sizes(),
    Sizes(frames=2, rows=8, columns=4, text=7),
    Sizes(frames=5, rows=5, columns=11, text=11),
)
LATER = 0.25  # noise level of a later step
HOW = "which queries and keys change with the latent, at three sizes"


@dataclass(frozen=True)
class _Watched:
    """A self-attention in one call of a small model.

    Attributes:
        queries, keys: which tokens changed with the latent (S,).
        samples: of its batch.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    samples: int

    @property
    def own(self) -> tuple[int, int]:
        """Where the latent's tokens begin and end."""
        places = self.keys.nonzero().flatten().tolist()
        return places[0], places[-1] + 1

    @property
    def unlike(self) -> str:
        """Why these are not the latent's tokens in one run at an end of the sequence; "" where they are."""
        if self.samples > 1:
            return "attends within parts of the sequence"
        start, end = self.own
        if not torch.equal(self.queries, self.keys) or not self.keys[start:end].all():
            return "the latent's tokens are not in one run"
        return "" if start == 0 or end == len(self.keys) else "the latent's tokens are between others"


def self_attentions(small: Small, latent: str) -> tuple[dict[str, SelfAttention], str]:
    """Modules that attend over the latent's tokens by path, their numbers left out.

    Args:
        latent: the denoiser's argument.

    Returns:
        Those that are proven; and why there is none, "" where there is one.
    """
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    reasons: dict[str, str] = {}
    try:
        for sizes in SIZES:
            given = small.call(sizes)
            numbers = sum(t.numel() for t in tensors(given[latent]))
            for path, calls in _changed(small.denoiser, given, latent).items():
                if len(calls) > 1:
                    reasons[path] = "attends more than once"
                elif why := calls[0].unlike:
                    reasons[path] = why
                else:
                    found[path].append(_layout(calls[0], numbers))
    except Exception as error:  # whatever a class makes of other answers of its attention
        return {}, f"it does not run where attention answers with its values: {type(error).__name__}: {error}"
    made: dict[str, SelfAttention | None] = {}
    for path, layouts in found.items():
        one = None if path in reasons else _agreed(layouts)
        if one is None:
            reasons.setdefault(path, "how much of the latent a token is changes with the size")
        name = numbered(path)
        made[name] = one if made.get(name, one) == one else None
    proven = {path: one for path, one in made.items() if one is not None}
    hiding, steady = _masked(small, latent, proven)
    proven = {path: replace(one, hides_text=path in hiding, steady=path in steady) for path, one in proven.items()}
    return proven, "" if proven else _why_none(small, reasons)


def _layout(seen: _Watched, numbers: int) -> tuple[str, int]:
    """Where the others are, and numbers of the latent in a token, 0 where they are not whole."""
    (start, end), tokens = seen.own, len(seen.keys)
    count = end - start
    return "before" if start else "behind" if end < tokens else "", 0 if numbers % count else numbers // count


def _agreed(layouts: Sequence[tuple[str, int]]) -> SelfAttention | None:
    """What holds at every size; tokens that fill up the last one's row or tile are others, if only at some sizes."""
    numbers, others = {n for _, n in layouts}, {where for where, _ in layouts if where}
    if len(layouts) < len(SIZES) or len(numbers) > 1 or 0 in numbers or len(others) > 1:
        return None
    return SelfAttention(others.pop(), numbers.pop()) if others else SelfAttention()


def _changed(denoiser: nn.Module, given: Mapping[str, Any], latent: str) -> dict[str, list[_Watched]]:
    """The self-attentions whose keys change with the latent, by module."""
    other = dict(given)
    other[latent] = [0.5 - t for t in given[latent]] if isinstance(given[latent], list) else 0.5 - given[latent]
    before, after = (_recorded(denoiser, one) for one in (given, other))
    seen = {
        path: [
            _Watched(_differ(one.q, two.q), _differ(one.k, two.k), len(one.q))
            for one, two in zip(calls, after[path], strict=True)
            if one.tokens
        ]
        for path, calls in before.items()
    }
    changed = {path: [one for one in calls if one.keys.any()] for path, calls in seen.items()}
    return {path: calls for path, calls in changed.items() if calls}


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one != other).any(3).any(1).any(0)


def _recorded(denoiser: nn.Module, given: Mapping[str, Any]) -> dict[str, list[SdpaCall]]:
    """The calls by the attention module that made them; self-attention answers with its values."""
    made: dict[str, list[SdpaCall]] = defaultdict(list)
    running: list[str] = []

    def answer(call: SdpaCall) -> torch.Tensor | None:
        if running and attends(denoiser.get_submodule(running[-1])):
            made[running[-1]].append(call)
        return call.plain()[2].transpose(1, 2) if call.tokens else None

    with ExitStack() as hooks:
        for path, module in denoiser.named_modules():
            if path:
                hooks.callback(module.register_forward_pre_hook(partial(_begun, running, path)).remove)
                hooks.callback(module.register_forward_hook(partial(_ended, running)).remove)
        hooks.enter_context(Answering(answer))
        output_of(denoiser, given)
    return made


def _begun(running: list[str], path: str, module: nn.Module, args: Any) -> None:
    running.append(path)


def _ended(running: list[str], module: nn.Module, args: Any, result: Any) -> None:
    running.pop()


def _masked(small: Small, latent: str, proven: Mapping[str, SelfAttention]) -> tuple[set[str], set[str]]:
    """What masks do where the last text token is padding.

    Returns:
        Those whose mask hides keys from all queries alike, and none of the latent's; and those that have the same mask
        where latent and time are others.
    """
    given, other = small.call(Sizes()), small.call(Sizes(noise=LATER))
    masks = {name: _padded(value) for name, value in given.items() if "mask" in name and _is_mask(value)}
    hiding: dict[str, set[bool]] = defaultdict(set)
    steady: dict[str, set[bool]] = defaultdict(set)
    try:
        calls, later = (_recorded(small.denoiser, {**one, **masks}) for one in (given, other) if masks)
    except Exception:  # whatever a class makes of a shorter text; or it takes no mask
        return set(), set()
    for path, own in calls.items():
        one = proven.get(numbered(path))
        if one is not None:
            steady[numbered(path)].add(_same_mask(own[0], later[path][0]))
        if one is not None and one.others:
            hiding[numbered(path)].add(_hides_others(own[0], one.own_tokens(given[latent]), one.others))
    hides, holds = ({path for path, values in found.items() if values == {True}} for found in (hiding, steady))
    return hides, holds


def _padded(mask: torch.Tensor) -> torch.Tensor:
    """The mask of a text whose last token is padding."""
    made = mask.clone()
    made[:, -1] = 0
    return made


def _same_mask(one: SdpaCall, other: SdpaCall) -> bool:
    return one.mask is not None and other.mask is not None and torch.equal(one.mask, other.mask)


def _is_mask(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape[1] > 1


def _hides_others(call: SdpaCall, own: int, others: str) -> bool:
    mask = call.mask
    if mask is None or mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[2] != 1 or bool(mask.all()):
        return False
    return bool(mask[..., :own].all() if others == "behind" else mask[..., -own:].all())


def _why_none(small: Small, reasons: Mapping[str, str]) -> str:
    by_reason: dict[str, dict[str, None]] = defaultdict(dict)
    for path, why in reasons.items():
        by_reason[why][numbered(path)] = None
    if by_reason:
        return "; ".join(f"{why} ({', '.join(paths)})" for why, paths in by_reason.items())
    silent = sorted({f"{numbered(path)} ({kind})" for path, kind in _silent(small)})
    named = f": not {', '.join(silent)}" if silent else ""
    return f"no attention over all the latent's tokens calls scaled_dot_product_attention{named}"


def _silent(small: Small) -> Iterator[tuple[str, str]]:
    """Attention modules that ran and did not call it, with the kind of their processor."""
    ran: list[str] = []
    with ExitStack() as hooks:
        for path, module in small.denoiser.named_modules():
            if path and attends(module):
                hooks.callback(module.register_forward_pre_hook(partial(_begun, ran, path)).remove)
        calls = _recorded(small.denoiser, small.call(Sizes()))
    for path in dict.fromkeys(ran):
        module = small.denoiser.get_submodule(path)
        if not any(name == path or name.startswith(f"{path}.") for name in calls):
            yield path, type(vars(module).get("processor", module)).__name__
