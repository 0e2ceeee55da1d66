"""Measures a `Sensitivity`: linear by linear, and all together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from rich.progress import Progress, TaskID
from torch import nn

from ...core.errors import StackError
from ...core.facts import machine_of
from ...core.installer import Installer
from ...models.wiring import wiring_of
from ...quant.backends.base import Backend
from ...quant.quantize import Quantize
from ...quant.rounding.calibrated import calibrated, calibrated_bytes
from ...quant.rounding.candidates import RoundingCandidate
from ...quant.schemes import KEEP
from ...runtime.stack_like import StackLike
from .depends import dependencies
from .inputs import Inputs, held_out, in_portions, inputs_of
from .recording import Recorded
from .sensitivity import LayerSensitivity, Sensitivity

CANDIDATES = (
    KEEP,
    "int8-weight",
    "nf4",
    "nf4/32+feedback",
    "nf4+feedback",
    "nf4/192+feedback",
    "int4-weight+feedback",
    "nf4+feedback+rank8",
)
BUDGET = 1 << 30  # bytes of second moments that are held at a time
AMPLIFIED = 4.0  # times the error of a rounded linear, to see it above the rounding of everything behind it
FAINT = 0.05  # of that error: where hardly anything but that rounding is left
JUDGED = 2  # samples that one linear's effect on the output is measured on


class Amplified(nn.Module):
    """A linear that errs `factor` times as much as its converted form."""

    def __init__(self, linear: nn.Linear, module: nn.Module, factor: float):
        super().__init__()
        self.linear, self.module, self.factor = linear, module, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., K) to (..., N)."""
        exact: torch.Tensor = self.linear(x)
        return exact + self.factor * (self.module(x) - exact)


@dataclass(frozen=True)
class Alone:
    """What one converted linear does to the output; squared relative errors.

    Attributes:
        own: what grows with the square of the linear's error.
        by_sigma: as measured, by noise level.
    """

    own: float
    by_sigma: dict[float, float]


@dataclass
class Workshop:
    """The model below its quantize pass, with what is needed to exchange its linears.

    Attributes:
        linears: those that the quantize pass would convert, by path.
        calls: recorded, all samples.
        made: by path and candidate's name, the calibrated modules.
    """

    stack: StackLike
    quantize: Quantize
    linears: dict[str, nn.Linear]
    candidates: tuple[RoundingCandidate, ...]
    calls: list[Recorded]
    made: dict[str, dict[str, nn.Module]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._machine = machine_of(next(self.stack.denoiser.parameters()).device)
        inputs = wiring_of(self.stack.denoiser).inputs
        judged = held_out(len(self.calls[0].latent))[1]
        self._judge = [call.only(judged, inputs) for call in self.calls]
        self._quick = [call.only(judged[:JUDGED], inputs) for call in self.calls]
        denoiser = self.stack.denoiser
        self._wanted = {id(c): c.run(denoiser).float() for c in [*self._judge, *self._quick]}

    def backend(self, candidate: RoundingCandidate) -> Backend:
        """Who computes a candidate's scheme without calibration."""
        return self.quantize.backend_for(candidate.scheme, self._machine)[0]

    def module(self, path: str, candidate: RoundingCandidate) -> nn.Module:
        """A linear as a candidate makes it."""
        if candidate.keeps:
            return self.linears[path]
        known = self.made.get(path, {}).get(candidate.name)
        return known or self.backend(candidate).convert([self.linears[path]], candidate.scheme)[0]

    @contextmanager
    def exchanged(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """The model with these modules in the place of its linears."""
        install = Installer()
        try:
            for path, module in modules.items():
                install.replace_module(self.stack.denoiser, path, module)
            yield
        finally:
            install.rollback()

    def error(self, names: Mapping[str, RoundingCandidate]) -> float:
        """Relative error of the output, pooled over all recorded calls, with these linears exchanged."""
        modules = {path: self.module(path, candidate) for path, candidate in names.items()}
        return self._errors(modules, self._judge)[0] ** 0.5

    def alone(self, path: str, candidate: RoundingCandidate) -> Alone:
        """What one linear does to the output, the rest of the model as it is.

        Any change at all, however small, makes later roundings of a 16-bit model fall otherwise. What that costs does
        not grow with the change, so it is told apart by a second, amplified one.
        """
        linear, module = self.linears[path], self.module(path, candidate)
        (once, by_sigma), (more, _) = (
            self._errors({path: Amplified(linear, module, factor)}, self._quick) for factor in (1.0, AMPLIFIED)
        )
        return Alone(max(0.0, (more - once) / (AMPLIFIED**2 - 1)), by_sigma)

    def rounding(self, candidate: RoundingCandidate, own: float) -> float:
        """Squared relative error of the output when every linear errs a hardly visible share of what it would.

        Args:
            own: what all linears' errors in full add up to.
        """
        faint = {
            path: Amplified(self.linears[path], self.module(path, each), FAINT)
            for path, each in self.uniform(candidate).items()
        }
        return max(0.0, self._errors(faint, self._judge)[0] - FAINT**2 * own)

    def _errors(self, modules: Mapping[str, nn.Module], calls: Sequence[Recorded]) -> tuple[float, dict[float, float]]:
        """Squared relative error of the output with these modules in: of all calls, and by sigma."""
        sums: dict[float, list[float]] = {}
        with self.exchanged(modules):
            for call in calls:
                wanted, got = self._wanted[id(call)], call.run(self.stack.denoiser).float()
                pair = sums.setdefault(call.tick.sigma, [0.0, 0.0])
                pair[0] += float((got - wanted).square().sum())
                pair[1] += float(wanted.square().sum())
        missed, whole = (sum(pair[i] for pair in sums.values()) for i in (0, 1))
        return missed / whole, {sigma: a / b for sigma, (a, b) in sums.items()}

    def uniform(self, candidate: RoundingCandidate) -> dict[str, RoundingCandidate]:
        """Every linear that it fits in one candidate."""
        return {path: candidate for path, linear in self.linears.items() if candidate.fits(linear.in_features)}


def workshop(stack: StackLike, quantize: Quantize, schemes: Sequence[str], calls: list[Recorded]) -> Workshop:
    """For a stack that carries the passes below `quantize`.

    Raises:
        StackError: no linears, or a scheme that cannot be read or computed here.
    """
    names = dict.fromkeys([*schemes, KEEP, quantize.scheme])
    choices = quantize.choices(stack.denoiser, wiring_of(stack.denoiser), stack.facts)
    linears = {c.path: stack.denoiser.get_submodule(c.path) for c in choices if c.kept is None}
    if not linears:
        raise StackError(f"0 of {len(choices)} linears can be converted to {quantize.scheme}: see explain()")
    plain = {path: linear for path, linear in linears.items() if isinstance(linear, nn.Linear)}
    made = Workshop(stack, quantize, plain, tuple(RoundingCandidate(name) for name in names), calls)
    device = next(stack.denoiser.parameters()).device
    for candidate in made.candidates:
        if not candidate.keeps:
            made.backend(candidate).prepare(candidate.scheme, device)
    return made


@torch.no_grad()
def measure(shop: Workshop, progress: bool) -> Sensitivity:
    """Each linear's gain, every candidate's local error and bytes, and every candidate in all linears at once."""
    layers, every = [], []
    reference = RoundingCandidate(shop.quantize.scheme)
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("sensitivity", total=len(shop.linears) + len(shop.candidates))
        for portion in in_portions(shop.linears, BUDGET):
            inputs = inputs_of(shop.stack.denoiser, portion, shop.calls)
            for path in portion:
                layer, alone = _layer(shop, path, inputs.pop(path), reference)
                layers.append(layer)
                every.append(alone)
                bar.advance(task)
        rounding = shop.rounding(reference, sum(alone.own for alone in every))
        whole = _whole(shop, layers, rounding, bar, task)
    curves = [alone.by_sigma for alone in every]
    sigmas = tuple(sorted(curves[0], reverse=True))
    courses = {f"{sigma:.4f}": tuple(each[sigma] ** 0.5 for each in curves) for sigma in sigmas}
    schemes = tuple(candidate.name for candidate in shop.candidates)
    depends = dependencies(shop.stack)
    return Sensitivity(tuple(layers), schemes, reference.name, sigmas, courses, rounding**0.5, whole, depends)


def _layer(shop: Workshop, path: str, inputs: Inputs, reference: RoundingCandidate) -> tuple[LayerSensitivity, Alone]:
    linear, seen, rows = shop.linears[path], inputs.seen(), torch.cat(inputs.rows)
    wanted = linear(rows).float()
    power = float(wanted.square().sum()) or 1.0
    local, sizes = {KEEP: 0.0}, {KEEP: linear.weight.nbytes}
    for candidate in shop.candidates:
        if candidate.keeps or not candidate.fits(linear.in_features):
            continue
        backend = shop.backend(candidate)
        if not candidate.plain:
            module = calibrated(linear, candidate, seen, partial(_converted, backend, candidate))
            shop.made.setdefault(path, {})[candidate.name] = module
        module = shop.module(path, candidate)
        local[candidate.name] = float((module(rows).float() - wanted).square().sum()) / power
        sizes[candidate.name] = calibrated_bytes(module, backend.held_bytes)
    alone = shop.alone(path, reference)
    gain = alone.own / max(local[reference.name], 1e-30)
    return LayerSensitivity(path, (linear.out_features, linear.in_features), gain, local, sizes), alone


def _converted(backend: Backend, candidate: RoundingCandidate, linear: nn.Linear) -> nn.Module:
    return backend.convert([linear], candidate.scheme)[0]


def _whole(
    shop: Workshop, layers: Sequence[LayerSensitivity], rounding: float, bar: Progress, task: TaskID
) -> dict[str, tuple[float, float]]:
    whole = {}
    for candidate in shop.candidates:
        if not candidate.keeps:
            summed = sum(layer.error(candidate.name) for layer in layers if candidate.name in layer.local)
            uniform = shop.uniform(candidate)
            whole[candidate.name] = ((summed + rounding) ** 0.5 if uniform else 0.0, shop.error(uniform))
        bar.advance(task)
    return whole
