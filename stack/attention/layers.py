"""Attention layers whose calls of `scaled_dot_product_attention` back ends may compute in torch's place.

A layer's own processor runs as it is, whoever made it, so that only the product of attention is exchanged. What no back
end takes is computed by torch with the very arguments it was given, bit for bit as without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import Attention
from torch import nn

from ..compat.rules.sparse import OTHER_PROCESSORS
from ..compile import compiled
from ..core.installer import Installer
from ..core.passes import Applied
from ..core.progress import counted
from ..core.readback import reads_are_free
from ..models.derive.linears import attends
from ..models.layout import SelfAttention, numbered
from ..models.sdpa import AnsweredGraphs, Answering, SdpaCall, answering_compiled
from ..runtime.target import Target
from .once_per_request import OncePerRequest
from .tally import Tally

NOTHING, OTHERS, MORE = "nothing", "others", "more"
CHOSEN_BACKEND = "_attention_backend"  # of processors that ask diffusers' dispatcher
NO_GRAPHS = "no-cudagraphs"
UNCOMPILED = "no attention was asked for by compiled code: the layer runs uncompiled from here on"


@dataclass(frozen=True)
class AttentionCall:
    """A self-attention over the latent's tokens.

    Attributes:
        layer: path of the module.
        layout: where the latent's tokens are in the sequence.
        sdpa: what torch was asked for.
        own: how many tokens are the latent's; 0 where that is not known.
        parallel: it runs on several devices, each with a part of the sequence.
        masks: what the masks of the request hide; None where that is not kept.
    """

    layer: str
    layout: SelfAttention
    sdpa: SdpaCall
    own: int
    parallel: bool = False
    masks: OncePerRequest[str] | None = None

    @property
    def others(self) -> int:
        """How many tokens are not the latent's."""
        return self.sdpa.tokens - self.own

    @property
    def unusual(self) -> str:
        """What no back end computes, or ""."""
        sdpa = self.sdpa
        if self.parallel:
            return "context parallelism"
        if sdpa.causal or sdpa.dropout:
            return "causal" if sdpa.causal else "dropout"
        if not sdpa.q.dtype == sdpa.k.dtype == sdpa.v.dtype:  # torch casts them under autocast
            return "queries, keys and values of several dtypes"
        return "" if sdpa.v.shape == sdpa.k.shape else "values of another size"

    @property
    def recorded(self) -> str:
        """Why a kernel that has no gradient does not compute it, or ""."""
        given = self.sdpa.q, self.sdpa.k, self.sdpa.v
        return "gradients are recorded" if torch.is_grad_enabled() and any(x.requires_grad for x in given) else ""

    @cached_property
    def hides(self) -> str:
        """What its mask hides from all queries alike: nothing, other tokens than the latent's, or more than that.

        Where a look into the mask waits for the device it is taken once in a request, and never at a mask that may
        change from step to step: of such a one is taken what the layout says of all.
        """
        mask = self.sdpa.mask
        if mask is None:
            return NOTHING
        if reads_are_free(mask.device):
            return self._looked(mask)
        if self.layout.steady and self.masks is not None:
            place = self.layer, mask.shape, mask.dtype, self.masks.samples
            return self.masks.once(place, partial(self._looked, mask))
        return OTHERS if self.layout.hides_text and self._over_keys(mask) else MORE

    def _looked(self, mask: torch.Tensor) -> str:
        if bool((mask if mask.dtype == torch.bool else mask == 0).all()):
            return NOTHING
        # Not `own` from the end, which is no slice of nothing.
        own = slice(0, self.own) if self.layout.others == "behind" else slice(self.others, None)
        return OTHERS if self._over_keys(mask) and bool(mask[..., own].all()) else MORE

    def _over_keys(self, mask: torch.Tensor) -> bool:
        """Whether a mask hides keys from all queries alike, and there are others than the latent's to hide."""
        return mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1:3] == (1, 1) and bool(self.layout.others)

    @property
    def seen(self) -> torch.Tensor | None:
        """Keys (B, S) that may be attended to; None where all are."""
        mask = self.sdpa.mask
        return None if mask is None or self.hides == NOTHING else mask[:, 0, 0].expand(len(self.sdpa.q), -1)


class AttentionBackend(Protocol):
    """Who may compute attention in place of torch."""

    def unfit(self, call: AttentionCall) -> str:
        """Why it does not compute this call, or "" where it does."""
        ...

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """Attention of (B, S, H, D) tensors with scores scaled by 1 / sqrt(D); (B, S, H, D) out."""
        ...

    def note(self, reason: str, call: AttentionCall | None) -> None:
        """Counts one call of a layer.

        Args:
            reason: why it did not compute it, or "".
            call: None where torch was not asked for any.
        """
        ...


def put_backend(
    target: Target, install: Installer, backend: AttentionBackend, last: bool = False
) -> dict[str, nn.Module]:
    """Let a back end be asked first, or last, in all layers that attend over the latent's tokens. These by path."""
    first, wiring, others = not target.attention_backends, target.wiring, target.attention_backends
    install.set_attribute(target, "attention_backends", (*others, backend) if last else (backend, *others))
    masks: OncePerRequest[str] = OncePerRequest(target)
    layers = {path: m for path, m in target.denoiser.named_modules() if numbered(path) in wiring.attention}
    for path, module in layers.items() if first else ():
        layout = wiring.attention[numbered(path)]
        # Counters and shapes are Python: traced into a compiled block, every step would be compiled anew.
        install.wrap_call(module, "forward", partial(_asking, target, path, module, layout, masks), traced=False)
    return layers


def applied(
    target: Target,
    install: Installer,
    backend: AttentionBackend,
    tally: Tally,
    report: Callable[[], dict[str, Any]],
    *,
    last: bool = False,
    what: str = "",
    details: Mapping[str, Any] | None = None,
) -> Applied:
    """A pass that is one back end.

    Args:
        tally: which the back end keeps.
        last: it is asked after the others.
        what: it does, for the summary.
        details: further ones than the tally.
    """
    layers = put_backend(target, install, backend, last)
    install.on_rollback(tally.reset)
    return Applied(
        summary=f"{len(layers)} of {attention_layers(target)} attention layers{what}",
        report=report,
        reset=tally.reset,
        details={"tally": tally, **(details or {})},
        warnings=left_alone(layers.values()),
    )


def _asking(
    target: Target,
    path: str,
    module: nn.Module,
    layout: SelfAttention,
    masks: OncePerRequest[str],
    inner: Callable[..., Any],
) -> Callable[..., Any]:
    """A layer's forward, within which the back ends are asked. Compiled by itself where the blocks are."""
    by_mode: dict[str, Callable[..., Any]] = {}
    compiles = True

    def own_forward() -> Callable[..., Any]:
        # What answers in compiled code has no gradient, and no back end that somebody else chose around it.
        if not (mode := target.compile_mode) or torch.is_grad_enabled() or not compiles or backend_of(module):
            return inner
        # A CUDA graph would replay one call's answer. What is around the layer is captured all the same.
        mode = mode if mode.endswith(NO_GRAPHS) else "default"
        return by_mode.get(mode) or by_mode.setdefault(mode, compiled(inner, mode, AnsweredGraphs(mode)))

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiles
        asked: list[AttentionCall] = []

        def answer(sdpa: SdpaCall) -> torch.Tensor | None:
            # A second one beside it, of an image prompt, is not over the sequence.
            if asked or not sdpa.tokens:
                return None
            own = _own_tokens(target, layout, sdpa)
            asked.append(AttentionCall(path, layout, sdpa, own, is_parallel(module), masks))
            return _answer(target, asked[0])

        run = own_forward()
        with Answering(answer) if run is inner else answering_compiled(answer):
            out = run(*args, **kwargs)
        if not asked:
            # The compiler may have left the layer as it is: it is switched off, or has met too many kinds of calls.
            compiles = compiles and run is inner
            reason = f"no scaled_dot_product_attention over the sequence{_instead(module)}"
            for backend in target.attention_backends:
                backend.note(reason if run is inner else UNCOMPILED, None)
        return out

    return forward


def _answer(target: Target, call: AttentionCall) -> torch.Tensor | None:
    for backend in target.attention_backends:
        reason = backend.unfit(call)
        backend.note(reason, call)
        if not reason:
            made: torch.Tensor = backend.run(*call.sdpa.plain(), call)
            return made.transpose(1, 2)
    return None


def _own_tokens(target: Target, layout: SelfAttention, sdpa: SdpaCall) -> int:
    """How many tokens are the latent's; 0 where its size does not tell."""
    if not layout.others:
        return sdpa.tokens
    latent = target.conditions.given.get(target.wiring.latent)
    own = 0 if latent is None else layout.own_tokens(latent, target.facts.latent[0])
    return own if own <= sdpa.tokens else 0


def attention_layers(target: Target) -> int:
    """How many there are, cross-attention included."""
    paths = [path for path, module in target.denoiser.named_modules() if attends(module)]
    return sum(not any(other.startswith(f"{path}.") for other in paths) for path in paths)


def left_alone(layers: Iterable[nn.Module]) -> list[str]:
    """What back ends that somebody else chose mean for the calls of one of ours."""
    chosen = [backend for layer in layers if (backend := backend_of(layer))]
    past = [backend for backend in chosen if "native" not in backend]
    through = sorted(set(chosen) - set(past))
    names = ", ".join(sorted(set(past)))
    notes = [f"{counted(len(past), 'layer')} left alone: {names} does not go through torch"] if past else []
    notes += [f"calls that a pass takes do not use {', '.join(through)}, others do"] if through else []
    return [OTHER_PROCESSORS.annotate(text) for text in notes]


def processor_of(module: nn.Module) -> Any:
    """The processor of one of diffusers' attention modules, else the module itself."""
    return module.processor if isinstance(module, AttentionModuleMixin | Attention) else module


def is_parallel(module: nn.Module) -> bool:
    """Whether context parallelism of diffusers is on."""
    return vars(processor_of(module)).get("_parallel_config") is not None


def backend_of(module: nn.Module) -> str:
    """The attention back end of diffusers that somebody has chosen for a layer or the process; "" where nobody has."""
    processor = processor_of(module)
    chosen = vars(processor).get(CHOSEN_BACKEND)
    if chosen is None and any(CHOSEN_BACKEND in vars(kind) for kind in type(processor).__mro__):
        of_all, _ = _AttentionBackendRegistry.get_active_backend()
        chosen = None if of_all == AttentionBackendName.NATIVE else of_all
    return "" if chosen is None else str(chosen.value if isinstance(chosen, Enum) else chosen)


def _instead(module: nn.Module) -> str:
    return f" in {backend_of(module) or type(processor_of(module)).__name__}"
