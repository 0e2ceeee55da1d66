"""A call of the whole denoiser as data, and the chain of interceptors that it passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
from typing import Any, Protocol

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from ..core.installer import Installer
from .values import flat


@dataclass(frozen=True)
class DenoiserCall:
    """One call of the denoiser, not made yet.

    Attributes:
        run: the denoiser's own forward with the arguments of this call; `run()` calls the model.
        given: those arguments by name.
        name: of the argument that is the noisy latent.
        backwards: the denoiser's time counts up to the clean sample, and so does its velocity, x0 - noise.
        beside, returns: see `stack.models.layout.Wiring`.
    """

    run: partial[Any]
    given: Mapping[str, Any]
    name: str = "hidden_states"
    backwards: bool = False
    beside: tuple[str, ...] = ()
    returns: Callable[..., Any] | None = None

    @property
    def latent(self) -> torch.Tensor:
        """The noisy latent, batch first; with all that is denoised beside it, one after the other, (B, N, 1)."""
        if self.beside:
            return side_by_side(self._latents)
        latent = self.given[self.name]
        return batch_of(latent) if isinstance(latent, list) else latent

    @property
    def _latents(self) -> list[torch.Tensor]:
        return [self.given[name] for name in (self.name, *self.beside)]

    def made(self, result: Any) -> torch.Tensor:
        """What the denoiser has returned, laid out as `latent`."""
        if self.beside:
            return side_by_side([result[place] for place in range(1 + len(self.beside))])
        sample: torch.Tensor = result[0]
        return sample

    def answer(self, made: torch.Tensor) -> Any:
        """The inverse of `made`: what the denoiser would return."""
        outputs = [made]
        if self.beside:
            sizes = [latent[0].numel() for latent in self._latents]
            parts = zip(made.flatten(1).split(sizes, 1), self._latents, strict=True)
            outputs = [part.reshape(latent.shape).to(latent.dtype) for part, latent in parts]
        if not self.given.get("return_dict", True):
            return tuple(outputs)
        return (self.returns or Transformer2DModelOutput)(*outputs)

    def separable(self, names: Sequence[str]) -> bool:
        """Whether it can be made for some samples only.

        Args:
            names: its arguments with a leading batch dimension; none where they are not known.
        """
        return bool(names) and not holds_collections(self.given)

    def only(self, rows: Sequence[int], names: Sequence[str]) -> DenoiserCall:
        """The same call for these samples."""
        given = some_rows(self.given, rows, names, len(self.latent))
        # By name: diffusers' decorators look for some arguments among the named ones.
        return replace(self, run=partial(self.run.func, **given), given=given)


def holds_collections(given: Mapping[str, Any]) -> bool:
    """Whether adapters or control nets pass collections of tensors, whose layout is unknown."""
    some = [value for value in given.values() if isinstance(value, (dict, list, tuple)) and value]
    return bool(some) and any(isinstance(value, torch.Tensor) for value in flat(some))


def side_by_side(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All numbers of tensors (B, ...) one after the other, (B, N, 1)."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], 1).unsqueeze(-1)


def batch_of(latent: Any) -> torch.Tensor:
    """A noisy latent, batch first: some denoisers are given a list of samples."""
    return torch.stack(latent) if isinstance(latent, list) else latent


def some_rows(given: Mapping[str, Any], rows: Sequence[int], names: Sequence[str], batch: int) -> dict[str, Any]:
    """The arguments of a denoiser call for these samples; `names` are those with a leading batch dimension."""
    cut = dict(given)
    for name in names:
        value = given.get(name)
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch:
            cut[name] = value[list(rows)]
    return cut


Proceed = Callable[[DenoiserCall], Any]


class Interceptor(Protocol):
    """Stands between the denoiser's caller and the model: looks at a call, changes it, or answers it."""

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        """What the denoiser returns for this call.

        Args:
            proceed: hands the call, or another in its place, to the next interceptor and in the end to the model.
        """
        ...


class InterceptorChain:
    """The interceptors of one model in order, the outermost first.

    Attributes:
        run: lets a call pass all of them and makes it. Linked when the chain changes, so that a call costs none of it.
    """

    run: Proceed

    def __init__(self) -> None:
        self.interceptors = ()

    @property
    def interceptors(self) -> tuple[Interceptor, ...]:
        """Who intercepts; the first is asked first."""
        return self._interceptors

    @interceptors.setter
    def interceptors(self, interceptors: tuple[Interceptor, ...]) -> None:
        self._interceptors = interceptors
        run: Proceed = methodcaller("run")
        for interceptor in reversed(interceptors):
            run = partial(interceptor.intercept, proceed=run)
        self.run = run

    def add(self, install: Installer, *interceptors: Interceptor) -> None:
        """Put these, the outermost first, in front of those that are there; taken back with all of `install`."""
        install.set_attribute(self, "interceptors", (*interceptors, *self.interceptors))
