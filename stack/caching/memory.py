"""How much a cache holds, known before it runs: a pure function of policy and facts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..compat.subspace import EXACT_WIDTH, SKETCH
from ..core.facts import Facts
from ..models.wiring import FAMILIES, CachedModule, Wiring
from .forecast import Forecast
from .policy import DTYPES, Policy

DIVISIBLE = ("blocks", "modules", "related", "attention")  # sites that keep features of every block or module


@dataclass(frozen=True)
class Unit:
    """Predicted features that are used together.

    Attributes:
        count: how many, one per stream.
        bytes: of all.
    """

    count: int
    bytes: int


@dataclass(frozen=True)
class StateSize:
    """Bytes per picture and guidance branch, once enough full steps have run.

    Attributes:
        features: of features, differences, and what a gate compares with. Exact but for a few numbers per module.
        bases: the most that principal subspaces can take; their rank depends on the picture.
        units: what each block or module holds of its predicted features, in running order; empty where one feature
            stands for the whole model. A part of `features`.
    """

    features: int
    bases: int = 0
    units: tuple[Unit, ...] = ()

    @property
    def total(self) -> int:
        """The most that is held."""
        return self.features + self.bases

    def __str__(self) -> str:
        bases = f" and at most {self.bases / 1e6:.1f} MB of bases" if self.bases else ""
        return f"{self.features / 1e6:.1f} MB of state{bases}"


@dataclass(frozen=True)
class _SiteState:
    """What a site holds.

    Attributes:
        units: tokens of every predicted feature of the model's width; those of a block or module together.
        kept: further numbers, in the dtype of the model's features.
        stored: further numbers, in that of the state.
    """

    units: tuple[tuple[int, ...], ...] = ()
    kept: int = 0
    stored: int = 0

    @property
    def features(self) -> list[int]:
        return [tokens for unit in self.units for tokens in unit]


def tensors_of(forecast: Forecast, noisy: bool = False) -> int:
    """Tensors that a predictor holds per feature once it has seen order + 1 full steps (two more for a level).

    Args:
        noisy: one more, to pass over a step that is too near.
    """
    order = forecast.effective_order
    raw = max(1, order + bool(forecast.smoothing) + (noisy and order > 0))
    # A difference that is taken as it is, is held once: not where gains or a split make another tensor of it.
    shaped = tuple(forecast.gains) != (1, 1) or noisy
    return 1 + order + (raw - 1 if shaped else 0) + (2 if forecast.level else 0)


def state_size(policy: Policy, facts: Facts) -> StateSize | None:
    """State of one picture and one guidance branch; None where the facts do not tell its tokens or blocks."""
    wiring = FAMILIES[facts.family]
    held = _held(policy, facts, wiring) if facts.image_tokens else None
    if held is None:
        return None
    if policy.corrected:
        if not (latent := _fp32_latent(facts)):
            return None
        held = replace(held, kept=held.kept + 2 * latent)
    model = torch.float32 if facts.dtype == "float32" else torch.bfloat16
    kept_in = DTYPES[policy.state_dtype] or model
    wide = torch.promote_types(kept_in, model).itemsize
    per_token = facts.width * _tensors(policy)
    probe = facts.image_tokens * facts.width if policy.gate in ("prefix", "polynomial") else 0
    bases = bands = 0
    if policy.banded:
        bands = len(held.features) * sum(length**2 for length in facts.grid)  # a square projection along every axis
    elif policy.forecast.splits:
        bases = sum(facts.width * min(tokens, _ranks(facts.width)) for tokens in held.features)
    stored = sum(held.features) * per_token + held.stored
    features = stored * kept_in.itemsize + (held.kept + probe) * model.itemsize + bands * wide
    units = [Unit(len(unit), sum(unit) * per_token * kept_in.itemsize) for unit in held.units]
    return StateSize(features, bases * wide, tuple(units) if policy.site in DIVISIBLE else ())


def _tensors(p: Policy) -> int:
    return tensors_of(p.forecast, noisy=bool(p.noise))


def _ranks(width: int) -> int:
    return width if width <= EXACT_WIDTH else SKETCH


def _held(p: Policy, facts: Facts, wiring: Wiring) -> _SiteState | None:
    image, whole, width = facts.image_tokens, facts.tokens, facts.width
    text = whole - image
    if p.site == "denoiser":
        numbers = image * facts.latent[0]
        return _SiteState(kept=3 * numbers if p.gate else 0, stored=numbers * _tensors(p)) if numbers else None
    if p.site == "clean":  # always in fp32, whatever the model computes in
        numbers = _fp32_latent(facts)
        stored = numbers if not p.state_dtype else image * facts.latent[0]
        return _SiteState(stored=stored * _tensors(p)) if numbers else None
    if p.site == "fastcache":
        return _SiteState(kept=_fastcache(p, image, whole, facts.blocks) * width)
    if p.site in ("output", "residual"):
        streams = (text, image) if p.back and text else (image,)
        return _SiteState(((*streams, image) if p.accept else streams,))
    if p.site == "blocks":
        return _SiteState(((text, image) if text else (image,),) * facts.blocks)
    if not facts.lists:
        return None
    if p.site == "tokens":  # attention and MLP of every block; ages, and scores of values, per token of an MLP
        numbers = whole * sum(facts.lists)
        scores = numbers * (2 if p.select == "values" else 1) * torch.float32.itemsize
        return _SiteState(((image,),), kept=2 * numbers * width + scores // _element(facts))
    roles = ("attention",) if p.site == "attention" else ("attention", "mlp")
    per_list = [_modules(wiring.modules[name], roles, text, image) for name in wiring.block_lists]
    held = _SiteState(tuple(u for count, units in zip(facts.lists, per_list, strict=True) for u in units * count))
    if p.site == "related":  # what its gate looks at is kept first
        return _SiteState(((image,), *held.units) if p.gate else held.units, stored=sum(held.features) * width)
    return held


def _fp32_latent(facts: Facts) -> int:
    """A latent in fp32, in numbers of the model's own dtype; 0 where the facts do not tell."""
    return facts.image_tokens * facts.latent[0] * torch.float32.itemsize // _element(facts)


def _modules(
    modules: tuple[CachedModule, ...], roles: tuple[str, ...], text: int, image: int
) -> tuple[tuple[int, ...], ...]:
    """Tokens of every output of a block's modules: each role together has one for every token of the block."""
    if len(roles) > 1 and any(module.role == "both" for module in modules):
        return ((text + image,),)
    streams = (text, image) if text else (image,)
    return tuple(streams for role in roles if any(m.role == role for m in modules))


def _fastcache(p: Policy, image: int, whole: int, blocks: int) -> int:
    """Tokens kept: where it moves what a block added, that and the block's input, of every stream."""
    moved = p.carry == "moved"
    per_block = (2 * whole if moved else image) * ("gate" in p.parts)
    return per_block * blocks + (2 * image if moved and "tokens" in p.parts else image)


def _element(facts: Facts) -> int:
    return 4 if facts.dtype == "float32" else 2
