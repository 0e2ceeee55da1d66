"""The quantization pass: the blocks' large linears with fewer bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from ..compat import preexisting
from ..compat.rules.compilers import ROUNDED_EAGERLY
from ..compat.rules.quantization import ROUNDED_ELSEWHERE, ROUNDED_TWICE, ROWS_TOO_FEW
from ..compile import OFF, Compile
from ..core.errors import StackError, choose
from ..core.facts import Facts, Machine, machine_of
from ..core.installer import Installer
from ..core.passes import Applied, Finding, field_options
from ..core.validate import Count, check_fields
from ..models.layout import Wiring
from ..models.preexisting import COMPILED, execution_device
from ..runtime.target import Target
from .backends import BACKENDS, pick
from .backends.base import Backend
from .convert import forget_inputs, new_modules
from .errors import rounding_words
from .linears.two_precisions import Phase, SwitchPrecision, TwoPrecisions, ends_of, near_ends
from .rounding.calibrated import FeedbackRounding
from .schemes import KEEP, SCHEMES, Scheme, scheme_named
from .selection import Choice, Rules, choose_linears, choose_named, kept_words, row_gain, weight_bytes


@dataclass(frozen=True)
class Quantize:
    """Weights rounded once, and for "int8" and "fp8" activations on the fly, token by token.

    Embedders, modulation, norms, refiners and the output projection stay in floating point, and so does a text stream
    with too few tokens. The originals are kept, and undo restores them bit for bit.

    Attributes:
        scheme: see `stack.quant.schemes`.
        backend: "native", "torchao", "bitsandbytes", "quanto", or "auto" for the fastest that was measured.
        skip: shell wildcards of the paths of linears that are not converted.
        layers: the scheme of single linears by path, or "keep" for full precision; the others follow `scheme`. It
            overrules every reason to keep a linear but the kernel's. A mapping, kept as sorted pairs.
        min_features: linears with fewer inputs or outputs are not converted.
        ends: precision of the steps at both ends of the schedule: another scheme, or "keep" for the model's own;
            "" has one precision for all steps. Both sets of weights are then in memory.
        share: share of the schedule at each end that `ends` applies to; at least one step.
        feedback: round 4-bit weights with error feedback (GPTQ, arXiv 2210.17323), by `Stack.fit_rounding`.
        rounded: the weights that `Stack.fit_rounding` has rounded.

    Raises:
        StackError: unknown scheme or backend, a share outside (0, 0.5), or feedback without 4-bit weights
            or by another library.
    """

    stage: ClassVar[str] = "quantize"
    scheme: str = "int8"
    backend: str = "auto"
    skip: tuple[str, ...] = ()
    layers: tuple[tuple[str, str], ...] | Mapping[str, str] | None = None
    min_features: Count = 128
    ends: str = ""
    share: float = 0.1
    feedback: bool = False
    rounded: FeedbackRounding | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_fields(self, self.stage)
        scheme_named(self.scheme)
        if self.backend not in ("auto", *BACKENDS):
            raise choose("quantization backend", self.backend, ("auto", *BACKENDS))
        object.__setattr__(self, "layers", _pairs(self.layers))
        for name in (*self.plan.values(), self.ends):
            if name not in (KEEP, ""):
                scheme_named(name)
        if not 0 < self.share < 0.5:
            raise StackError(f"share must be between 0 and 0.5, got {self.share!r}")
        if self.feedback and self.backend not in ("auto", "native"):
            raise StackError(f"feedback=True is computed by the native backend, got backend={self.backend!r}")
        if self.feedback and not any(scheme.weight_bits == 4 for scheme in self.schemes):
            raise StackError(f"feedback=True is for 4-bit weights, got {self.scheme!r}: try 'nf4' or 'int4-weight'")

    @property
    def plan(self) -> dict[str, str]:
        """The mixed plan: scheme name or "keep" by path."""
        return dict(self.layers or ())

    @property
    def schemes(self) -> list[Scheme]:
        """The scheme, and those that only some layers or steps have."""
        names = [self.scheme, *self.plan.values(), self.ends]
        return list(dict.fromkeys(SCHEMES[name] for name in names if name not in (KEEP, "")))

    def backend_for(self, scheme: Scheme, machine: Any) -> tuple[Backend, str]:
        """Who computes a scheme, and why. A backend that is asked for but cannot leaves a plan's layers to "auto".

        Raises:
            StackError: nobody can.
        """
        if self.feedback and scheme.weight_bits == 4:
            return pick(scheme, "native", machine)
        if scheme.name != self.scheme and self.backend != "auto" and BACKENDS[self.backend].refuses(scheme, machine):
            return pick(scheme, "auto", machine)
        return pick(scheme, self.backend, machine)

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, those at their defaults left out.

        Raises:
            StackError: it holds rounded weights.
        """
        if self.rounded is not None:
            hint = "write feedback = true, and call fit_rounding(prompts)"
            raise StackError(f"a recipe cannot hold rounded weights: {hint}")
        return field_options(self)

    def describe(self, facts: Facts) -> list[str]:
        """What is rounded, by whom and why, what stays and why."""
        family: Wiring | None = facts.wiring
        roles = " and ".join(family.linears) if family else "large"
        where = f" of {facts.blocks} blocks" if facts.blocks else ""
        lines = [f"{self.scheme} in the {roles} linears{where}"]
        if self.plan:
            counts = {name: list(self.plan.values()).count(name) for name in dict.fromkeys(self.plan.values())}
            lines[0] += ", and a plan: " + ", ".join(f"{count} x {name}" for name, count in counts.items())
        for scheme in self.schemes:
            backend, why = self.backend_for(scheme, facts.machine)
            lines.append(f"{scheme.name}: {scheme.describe()}")
            lines.append(f"{scheme.name} by {backend.name}: {why}; {backend.kernel(scheme, facts.machine)}")
            # Error feedback may clip: the bound would not hold.
            lines += [] if self.feedback and scheme.weight_bits == 4 else [rounding_words(scheme, facts)]
        if self.ends:
            lines.append(_ends_line(self.ends, self.share, facts.steps))
        if self.rounded:
            lines.append(f"{len(self.rounded.linears)} linears rounded with error feedback on {self.rounded.source}")
        kept = row_gain(facts.text_tokens, facts.width) if SCHEMES[self.scheme].rounds_activations else ""
        if family:
            lines.append(f"not converted, errors there do not average out: {', '.join(family.sensitive)}")
        if family and "text" in family.streams:
            text = "the text stream's own linears"
            lines.append(f"not converted, no gain: {text} ({kept})" if kept else f"{text} are converted too")
        lines.append(f"not converted, no gain: linears under {self.min_features} features")
        if self.skip:
            hit = sum(any(fnmatchcase(path, pattern) for pattern in self.skip) for path, *_ in facts.linears)
            count = f"{hit} linears" if facts.linears else "linears"
            lines.append(f"not converted, as asked: {count} called {' or '.join(self.skip)}")
        return lines

    def check(self, facts: Facts) -> list[Finding]:
        """Already quantized, no backend for the device, or nothing large enough to convert."""
        found = [*preexisting.under_linears(facts, self.stage), *preexisting.offloaded(facts, self.stage)]
        if facts.weight_bits < 16 or facts.quantized_by:
            by = f" by {facts.quantized_by}" if facts.quantized_by else ""
            what = f"the model is already quantized{by} to {facts.weight_bits} bits"
            hint = "load it unquantized, or leave quantize() out"
            found.append(Finding.of(ROUNDED_TWICE, self.stage, what, repair=hint, fatal=True))
        if self.feedback and not self.rounded:
            what = "not rounded yet: call fit_rounding(prompts) on the stack"
            found.append(Finding(self.stage, what, "error feedback needs to see what linears are given", fatal=True))
        if self.rounded and (stale := self.rounded.stale(facts)):
            hint = "call fit_rounding(prompts) again"
            found.append(Finding.of(ROUNDED_ELSEWHERE, self.stage, stale, repair=hint, fatal=True))
        eager = []
        for scheme in self.schemes:
            try:
                backend = self.backend_for(scheme, facts.machine)[0]
                eager += [scheme.name] if scheme.rounds_activations and backend.rounds_in_steps else []
            except StackError as error:
                found.append(Finding(self.stage, str(error), fatal=True))
        found += _compiled(facts, self.stage, eager)
        gain = row_gain(facts.image_tokens, facts.width) if SCHEMES[self.scheme].rounds_activations else ""
        if facts.image_tokens and gain:
            what = f"{facts.image_tokens} image tokens of width {facts.width} are too few for int8 to be faster"
            found.append(Finding.of(ROWS_TOO_FEW, self.stage, what, note=True))
        if 0 < facts.width < self.min_features and not self.plan:
            what = f"no linear would be converted: the model is {facts.width} wide, min_features is {self.min_features}"
            found.append(Finding(self.stage, what, why=f"try min_features={facts.width}", fatal=True))
        return found if any(finding.fatal for finding in found) else [*found, *self._selected(facts)]

    def facts_after(self, facts: Facts) -> Facts:
        """The fewest bits of any linear, and who rounded."""
        rounded = [s.activation_bits for s in self.schemes if s.rounds_activations]
        edge = ends_of(facts.steps, self.share) / facts.steps
        backend = self.backend_for(SCHEMES[self.scheme], facts.machine)[0]
        return replace(
            facts,
            weight_bits=min(s.weight_bits for s in self.schemes),
            activation_bits=min(rounded, default=facts.activation_bits),
            quantized_by=backend.name,
            rounds_in_steps=backend.rounds_in_steps,
            switches=(*facts.switches, edge, 1 - edge) if self.ends else facts.switches,
        )

    def choices(self, denoiser: nn.Module, wiring: Wiring, facts: Facts) -> list[Choice]:
        """Every linear of a denoiser with its verdict. Changes nothing."""
        return choose_linears(denoiser, wiring, self._rules(machine_of(execution_device(denoiser)), facts))

    def verdicts(self, facts: Facts) -> list[Choice]:
        """The same by names and sizes alone: before there is a model.

        Raises:
            StackError: the plan names no linear of this model, or it is not known how it is wired.
        """
        family: Wiring | None = facts.wiring
        if family is None:
            raise StackError(f"how a {facts.family} model is wired is not known: expected facts of a model")
        return choose_named(facts.linears, family, self._rules(facts.machine, facts))

    def _rules(self, machine: Machine, facts: Facts) -> Rules:
        def multiple(scheme: Scheme) -> int:
            return self.backend_for(scheme, machine)[0].multiple(scheme, machine)

        return Rules(SCHEMES[self.scheme], self.min_features, facts.text_tokens, self.skip, self.plan, multiple)

    def _selected(self, facts: Facts) -> list[Finding]:
        """What speaks against the selection, by the names and sizes of the linears."""
        if not facts.linears or facts.wiring is None:
            return []
        try:
            choices = self.verdicts(facts)
        except StackError as error:
            return [Finding(self.stage, str(error), fatal=True)]
        if all(choice.kept for choice in choices):
            return [Finding(self.stage, _none_converted(self.scheme, choices), fatal=True)]
        idle = [pattern for pattern in self.skip if not any(fnmatchcase(c.path, pattern) for c in choices)]
        return [Finding(self.stage, f"skip: no linear is called {pattern!r}", note=True) for pattern in idle]

    def apply(self, target: Target, install: Installer) -> Applied:
        """Replace the linears.

        Raises:
            StackError: none qualifies, a product is not exact here, or a library is missing. Nothing is changed then.
        """
        choices = self.choices(target.denoiser, target.wiring, target.facts)
        chosen = [c for c in choices if c.kept is None]
        if not chosen:
            raise StackError(_none_converted(self.scheme, choices))
        device = next(target.denoiser.parameters()).device
        machine = machine_of(execution_device(target.denoiser))
        backends = {s.name: self.backend_for(s, machine)[0] for s in self.schemes}
        before = weight_bytes(target.denoiser, choices)
        converted, after = new_modules(target.denoiser, choices, backends, device, self.rounded)
        if self.ends:
            converted, more = self._two_precisions(target, choices, backends, device, converted, install)
            after += more
        for path, module in converted.items():
            install.replace_module(target.denoiser, path, module)
        summary = (
            f"{len(chosen)} of {len(choices)} linears converted to {_named(chosen)} "
            f"(weights {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB); not converted: {kept_words(choices)}"
        )
        return Applied(
            summary,
            report=lambda: {
                "converted": len(chosen),
                "linears": len(choices),
                "weight_bytes": after,
                "original_bytes": before,
            },
            reset=lambda: forget_inputs(converted.values()),
            details={
                "backend": backends[self.scheme].name,
                "converted": list(converted),
                "needs_originals": self.ends == KEEP,
                "kept": {c.path: str(c.kept) for c in choices if c.kept},
            },
        )

    def _two_precisions(
        self,
        target: Target,
        choices: list[Choice],
        backends: dict[str, Backend],
        device: torch.device,
        middle: dict[str, nn.Module],
        install: Installer,
    ) -> tuple[dict[str, nn.Module], int]:
        """Modules that follow the schedule, and the bytes their second weights take."""
        if self.ends == KEEP:
            ends: dict[str, nn.Module] = {path: target.denoiser.get_submodule(path) for path in middle}
            held = weight_bytes(target.denoiser, choices)
        else:
            other = [replace(c, scheme=SCHEMES[self.ends]) for c in choices]
            ends, held = new_modules(target.denoiser, other, backends, device, None)
        phase = Phase()
        clock = target.clock
        target.chain.add(install, SwitchPrecision(clock, phase, len(target.compute_modes)))
        modes = (*target.compute_modes, partial(near_ends, share=self.share))
        install.set_attribute(target, "compute_modes", modes)
        return {path: TwoPrecisions(ends[path], module, phase) for path, module in middle.items()}, held


def _compiled(facts: Facts, stage: str, schemes: list[str]) -> list[Finding]:
    """On CUDA every operation of rounding is a launch of its own unless the blocks are compiled."""
    if facts.machine.device != "cuda" or not schemes or COMPILED in facts.carries:
        return []
    what = f"{' and '.join(schemes)} rounds activations in small operations, which cuda launches one by one"
    repair = "compile() is added; compile('off') leaves it out"
    return [Finding.of(ROUNDED_EAGERLY, stage, what, repair=repair, adds=Compile(), instead=Compile(OFF))]


def _ends_line(ends: str, share: float, steps: int) -> str:
    count = ends_of(steps, share)
    precision = "the model's own precision" if ends == KEEP else ends
    return f"the first and the last {count} of {steps} steps run in {precision}: both weights stay in memory"


def _pairs(layers: Any) -> tuple[tuple[str, str], ...] | None:
    if layers is None:
        return None
    pairs = layers.items() if isinstance(layers, Mapping) else layers
    return tuple(sorted((str(path), str(name)) for path, name in pairs))


def _named(chosen: Sequence[Choice]) -> str:
    names = [choice.scheme.name for choice in chosen]
    kinds = dict.fromkeys(names)
    return next(iter(kinds)) if len(kinds) == 1 else ", ".join(f"{names.count(name)} x {name}" for name in kinds)


def _none_converted(scheme: str, choices: Sequence[Choice]) -> str:
    return f"0 of {len(choices)} linears can be converted to {scheme}: {kept_words(choices)}"
