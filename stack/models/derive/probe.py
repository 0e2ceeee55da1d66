"""A small instance of a class with a call of it that was traced, and what a second call tells of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from ..small import OTHER, Sizes, Small
from .arguments import batched_inputs, close
from .trace import Trace, output_of, same, tensors, traced


@dataclass
class Probe:
    """A small instance with a traced call of it.

    Attributes:
        trace: of one sample.
    """

    small: Small
    latent: str
    time: str

    def __post_init__(self) -> None:
        self.denoiser = self.small.denoiser
        before = _tensors_of(self.denoiser)
        self.trace = traced(self.denoiser, self.small.call(Sizes()))
        self.restless = any(a is not b for a, b in zip(before, _tensors_of(self.denoiser), strict=False))
        self.inputs, self.why_whole, self.two = self._batch()
        self.beside, self.returns, self.unlike_latent = self._outputs()

    def _batch(self) -> tuple[tuple[str, ...], str, Trace | None]:
        """Arguments with a leading batch dimension; or why a batch cannot be split, and a traced call of two."""
        if not self.small.batches:
            return (), self.small.reason, None
        two = traced(self.denoiser, self.small.call(Sizes(batch=2)))
        inputs = batched_inputs(self.trace.given, two.given)
        cut = {
            name: value[[1]] if name in inputs and isinstance(value, torch.Tensor) else value
            for name, value in two.given.items()
        }
        if any(not isinstance(two.given[name], torch.Tensor) for name in inputs):
            return (), "some of its arguments hold samples in collections", two
        try:
            alone, whole = tensors(output_of(self.denoiser, cut)), tensors(two.output)
        except Exception as error:  # whatever a class makes of arguments that do not fit together
            return (), f"one sample of a batch alone does not run: {error}", two
        if not all(close(one, other[1:]) for one, other in zip(alone, whole, strict=True)):
            return (), "one sample of a batch alone gives another output", two
        return inputs, "", two

    def later(self, **given: Any) -> Trace:
        """A call at another time, all else the same, or as given."""
        time = _map(self.trace.given[self.time], lambda t: (t * 0.5).to(t.dtype))
        return traced(self.denoiser, {**self.trace.given, self.time: time, **given})

    def other_sizes(self) -> Trace:
        """A call with other numbers of frames, rows, columns and text tokens."""
        return traced(self.denoiser, self.small.call(OTHER))

    def next_step(self) -> Trace:
        """A call with another latent at another time, all else the same."""
        return self.later(**{self.latent: _map(self.trace.given[self.latent], lambda t: t.flip(-1))})

    def _outputs(self) -> tuple[tuple[str, ...], Callable[..., Any] | None, str]:
        """What further outputs are laid out as, what holds them all, and why they are no change of the latents."""
        made = [one for one in self.trace.output if one is not None]
        if len(made) == 1:
            return (), None, self._unlike(made)
        given = {name: value for name, value in self.trace.given.items() if name != self.latent}
        if not all(isinstance(one, torch.Tensor) for one in (*self.trace.output, self.trace.given[self.latent])):
            return (), None, f"it returns {len(made)} outputs that are not all tensors"
        if made[0].shape != self.trace.given[self.latent].shape:
            return (), None, self._unlike(made)
        beside = [_only(name for name, value in given.items() if _alike(one, value)) for one in made[1:]]
        if "" in beside or len(set(beside)) < len(beside):
            return (), None, f"it returns {len(made)} outputs, and not each is laid out as an argument of its own"
        with torch.no_grad():
            whole = self.denoiser(**self.trace.given)
        if len(whole) != len(made) or not same(list(whole.values()), made):
            return (), None, f"with return_dict it returns other outputs than the {len(made)} without"
        return tuple(beside), type(whole), ""

    def _unlike(self, made: list[Any]) -> str:
        """Why the first output is no change of the latent, number for number; "" where it is one."""
        out, latent = (tensors(value)[0].shape for value in (made[0], self.trace.given[self.latent]))
        channels = len(out) - 1 if len(out) == 3 and not isinstance(made[0], list) else 1 - isinstance(made[0], list)
        if len(out) == len(latent) and all(
            a == b for i, (a, b) in enumerate(zip(out, latent, strict=True)) if i != channels
        ):
            return ""
        return f"its output {tuple(out)} is not laid out as its latent {tuple(latent)}"

    @property
    def ratio(self) -> Fraction:
        """Numbers in the output for one in the latent."""
        made, taken = tensors(self.trace.output[0]), tensors(self.trace.given[self.latent])
        return Fraction(sum(t.numel() for t in made), sum(t.numel() for t in taken))


def _alike(output: torch.Tensor, value: Any) -> bool:
    """Whether an argument is laid out as an output."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == output.shape


def _only(names: Iterable[str]) -> str:
    """The only name; "" where there are none or several."""
    found = list(names)
    return found[0] if len(found) == 1 else ""


def _tensors_of(denoiser: nn.Module) -> list[torch.Tensor | None]:
    return [t for module in denoiser.modules() for t in (*module._parameters.values(), *module._buffers.values())]


def _map(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return [change(one) for one in value] if isinstance(value, list) else change(value)
