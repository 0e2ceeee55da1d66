"""Which linears are quantized, to what, and why each of the others is not. Pure: looks at names and sizes only."""

from __future__ import annotations

import enum
import fnmatch
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import nn

from ..compat.rules.quantization import SMALLEST_GAINING_INPUT
from ..core.errors import StackError
from ..models.layout import Wiring
from .schemes import KEEP, SCHEMES, Scheme

# Linears of the text stream, which sees as many rows as the prompt has tokens; paths inside a block.
TEXT_STREAM = ("attn.add_[qkv]_proj", "attn.to_add_out", "ff_context.net.*")


class Reason(enum.Enum):
    """Why a linear stays. Three reasons that must not be confused, and the user's own."""

    LEGALITY = "kernel legality"  # the kernel cannot take it
    AMPLIFICATION = "error amplification"  # its output reaches every token: an error there does not average out
    NO_GAIN = "no gain"  # too small, or too few rows, to be faster
    ASKED = "asked for"


@dataclass(frozen=True)
class Kept:
    """Why one linear stays.

    Attributes:
        detail: its role, size or rows.
    """

    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"


@dataclass(frozen=True)
class Choice:
    """One linear of the denoiser.

    Attributes:
        path: in the denoiser.
        role: "attention" or "mlp"; None outside the large linears.
        shape: (out, in) features.
        scheme: what it becomes; read only where `kept` is None.
        kept: why it stays in floating point.
        group: linears of the same non-empty group read the same input.
    """

    path: str
    role: str | None
    shape: tuple[int, int]
    scheme: Scheme
    kept: Kept | None = None
    group: str = ""


@dataclass(frozen=True)
class Rules:
    """What decides beside the model itself.

    Attributes:
        scheme: of every linear that no entry of `layers` names.
        min_features: linears with fewer inputs or outputs stay.
        text_tokens: rows of the text stream; 0 if unknown.
        skip: shell wildcards of paths that stay.
        layers: scheme name or "keep" by path; it overrules everything but the kernel's legality.
        multiple: scheme to what its kernel needs in and out features to be a multiple of.
    """

    scheme: Scheme
    min_features: int = 128
    text_tokens: int = 0
    skip: tuple[str, ...] = ()
    layers: Mapping[str, str] | None = None
    multiple: Callable[[Scheme], int] = lambda scheme: 1


def row_gain(rows: int, features: int) -> str:
    """Why a linear that sees this many rows is not worth an int8 product, or ''. 0 rows means unknown."""
    if rows * features >= SMALLEST_GAINING_INPUT:
        return ""
    return f"{rows} rows" if rows else "number of rows unknown"


def choose_linears(denoiser: nn.Module, wiring: Wiring, rules: Rules) -> list[Choice]:
    """Every linear of a denoiser, in module order, with the verdict.

    Raises:
        StackError: `rules.layers` names no linear of this denoiser.
    """
    linears = {path: module for path, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    shapes = [(path, linear.out_features, linear.in_features) for path, linear in linears.items()]
    choices = choose_named(shapes, wiring, rules)
    return [_unless_illegal(choice, linears[choice.path]) for choice in choices]


def choose_named(linears: Sequence[tuple[str, int, int]], wiring: Wiring, rules: Rules) -> list[Choice]:
    """The verdict on linears of which no more is known than path, outputs and inputs: before there is a model.

    Raises:
        StackError: `rules.layers` names none of them.
    """
    paths = [path for path, *_ in linears]
    if missing := [path for path in rules.layers or {} if path not in paths]:
        like = get_close_matches(missing[0], paths, 1, 0.0)
        hint = f"; the nearest is {like[0]!r}" if like else ""
        raise StackError(f"expected paths of linears in layers, got {missing[0]!r}{hint}")
    return [_judge(path, (outputs, inputs), wiring, rules) for path, outputs, inputs in linears]


def _judge(path: str, shape: tuple[int, int], wiring: Wiring, rules: Rules) -> Choice:
    planned = (rules.layers or {}).get(path)
    scheme = SCHEMES[planned] if planned not in (None, KEEP) else rules.scheme
    block = wiring.block_of(path)
    inside = path[len(block) + 1 :] if block else ""
    # Where no blocks are known, roles are those of linears anywhere.
    role = wiring.role(inside or path) if block or not wiring.block_lists else None
    kept = _uneven(shape, rules.multiple(scheme))
    if planned == KEEP or (planned is None and _matches(path, rules.skip)):
        kept = Kept(Reason.ASKED, "kept by the plan of layers" if planned == KEEP else "skipped")
    elif kept is None and planned is None:
        kept = _gainless(shape, inside, rules)
        if role is None:
            kept = Kept(Reason.AMPLIFICATION, wiring.sensitivity(path))
    group = next((f"{block}/{i}" for i, patterns in enumerate(wiring.same_input) if _matches(inside, patterns)), "")
    return Choice(path, role, shape, scheme, kept, "" if kept else group)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _unless_illegal(choice: Choice, linear: nn.Linear) -> Choice:
    """The verdict, but that a linear which no kernel takes stays for that reason, or because it was asked to."""
    weight = linear.weight
    if type(linear) is nn.Linear and type(weight) is nn.Parameter and weight.is_floating_point():
        return choice
    if choice.kept is not None and choice.kept.reason is Reason.ASKED:
        return choice
    what = f"not a plain linear but {type(linear).__name__} of {type(weight).__name__}"
    return replace(choice, kept=Kept(Reason.LEGALITY, what), group="")


def _uneven(shape: tuple[int, int], multiple: int) -> Kept | None:
    """Why no kernel can take a linear of this shape."""
    outputs, inputs = shape
    if inputs % multiple or outputs % multiple:
        return Kept(Reason.LEGALITY, f"{inputs} x {outputs} is no multiple of {multiple}")
    return None


def _gainless(shape: tuple[int, int], inside: str, rules: Rules) -> Kept | None:
    """Why quantization would not make a linear of this shape faster, or its memory much smaller."""
    outputs, inputs = shape
    narrowest = min(shape)
    if narrowest < rules.min_features:
        what = f"{inputs} x {outputs} is under {rules.min_features} features"
        return Kept(Reason.NO_GAIN, what)
    if rules.scheme.rounds_activations and _matches(inside, TEXT_STREAM):
        few = row_gain(rules.text_tokens, narrowest)
        return Kept(Reason.NO_GAIN, few) if few else None
    return None


def grouped(choices: Sequence[Choice]) -> list[list[Choice]]:
    """The linears to convert; those that read the same input and become the same thing together."""
    groups: dict[tuple[str, str], list[Choice]] = defaultdict(list)
    for choice in choices:
        if choice.kept is None:
            groups[choice.group or choice.path, choice.scheme.name].append(choice)
    return list(groups.values())


def weight_bytes(denoiser: nn.Module, choices: Sequence[Choice]) -> int:
    """Bytes of the weights to be converted, as they are now."""
    weights: list[torch.Tensor] = [denoiser.get_parameter(f"{c.path}.weight") for c in choices if c.kept is None]
    return sum(weight.nbytes for weight in weights)


def kept_words(choices: Sequence[Choice]) -> str:
    """Every reason with its count, the three kinds apart."""
    counts = Counter(str(choice.kept) for choice in choices if choice.kept)
    return "; ".join(f"{count} x {kept}" for kept, count in sorted(counts.items())) or "none"
