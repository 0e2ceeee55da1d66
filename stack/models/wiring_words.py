"""What `ditstack models CLASS` prints: a wiring, how it was found, and what the class does not get."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import ModelMixin
from torch import nn

from ..core.errors import StackError, nearest
from .derive.wiring import wiring_of, wiring_of_class
from .layout import SelfAttention, Wiring
from .small import small


def shown(name: str) -> str:
    """How a denoiser class of diffusers is wired, how that was found, and what it does not get.

    Raises:
        StackError: no such class, or one that cannot be wired.
    """
    cls = _class_named(name)
    try:
        return "\n".join(lines(wiring_of(small(cls).denoiser)))
    except StackError:
        return "\n".join(lines(wiring_of_class(cls)))


def _class_named(name: str) -> type[nn.Module]:
    names = dir(diffusers)
    found = diffusers.__getattr__(name) if name in names else None  # it loads its parts when they are asked for
    if isinstance(found, type) and issubclass(found, ModelMixin):
        return found
    raise nearest(
        "denoiser class", name, [one for one in names if "Transformer" in one or "UNet" in one or "DiT" in one]
    )


def lines(wiring: Wiring) -> list[str]:
    """A wiring in words."""
    how = wiring.how
    said = [f"{', '.join(wiring.classes)}: family {wiring.family}, derived"]
    batch = ", ".join(wiring.inputs) or "not known"
    said += [f"arguments: latent {wiring.latent}, time {wiring.time}; with a batch dimension: {batch}"]
    if wiring.block_lists:
        said.append(f"blocks: {', '.join(wiring.block_lists)}{_because(how, 'block_lists')}")
        streams = ", ".join(f"{stream} in {name}" for stream, name in wiring.streams.items())
        said.append(f"streams: {streams}; the head reads {' and '.join(wiring.read)}{_because(how, 'streams')}")
    for path in wiring.joins:
        said.append(f"{path} take {' and '.join(wiring.ports[path].joined)} concatenated in one argument")
    for path, modules in wiring.modules.items():
        said += [f"{path}.*.{module.path}: {module.role}{_without(module.norms + module.spares)}" for module in modules]
    idle = (*wiring.makers, *wiring.unread)
    said += [f"skipped when no block runs: {', '.join(idle)}"] if idle else []
    said += [f"gives the same on every step: {', '.join(wiring.constants)}"] if wiring.constants else []
    said += [f"{role} linears: {', '.join(patterns)}" for role, patterns in wiring.linears.items() if patterns]
    said += [f"not quantized, {role}: {', '.join(patterns)}" for role, patterns in wiring.sensitive.items()]
    said += [f"attention over the latent's tokens: {path}{_beside(one)}" for path, one in wiring.attention.items()]
    said += [f"attention found by: {how['attention']}"] if "attention" in how else []
    said += [f"grid of the latent's tokens: {how['grid']}"] if "grid" in how else []
    said += [f"entries along the tokens in: {', '.join(wiring.along)}"] if wiring.along else []
    said += [f"tested: {how['proof']}"] if "proof" in how else []
    return said + [f"not for this class: {lack}: {reason}" for lack, reason in wiring.lacks.items()]


def _because(how: Any, name: str) -> str:
    return f" ({how[name]})" if name in how else ""


def _beside(attention: SelfAttention) -> str:
    return f", with other tokens {attention.others} them" if attention.others else ""


def _without(paths: tuple[str, ...]) -> str:
    return f"; skips {', '.join(paths)} where it is cached" if paths else ""
