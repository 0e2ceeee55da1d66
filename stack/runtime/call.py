"""A call of the whole denoiser as data, and the place where a pass may answer it instead of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class DenoiserCall:
    """One call of the denoiser, not made yet.

    Attributes:
        inner: the denoiser's own forward.
        args, kwargs: what it was called with.
        given: the same by name.
    """

    inner: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given: Mapping[str, Any]

    @property
    def latent(self) -> torch.Tensor:
        """The noisy latent, batch first."""
        return self.given["hidden_states"]

    def run(self) -> Any:
        """Call the denoiser."""
        return self.inner(*self.args, **self.kwargs)

    def separable(self, names: Sequence[str]) -> bool:
        """Whether it can be made for some samples only.

        Args:
            names: its arguments with a leading batch dimension; none where they are not known.
        """
        # Adapters and control nets hand over collections of tensors whose layout nothing tells.
        return bool(names) and not any(isinstance(value, (dict, list)) and value for value in self.given.values())

    def only(self, rows: Sequence[int], names: Sequence[str]) -> DenoiserCall:
        """The same call for these samples."""
        batch, given = len(self.latent), dict(self.given)
        for name in names:
            value = given.get(name)
            if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch:
                given[name] = value[list(rows)]
        # By name: diffusers' decorators look for some arguments among the named ones.
        return DenoiserCall(self.inner, (), given, given)


class Entrance:
    """Every call passes `run` after the clock has been told of it; a pass wraps it to answer calls itself."""

    def run(self, call: DenoiserCall) -> Any:
        """What the denoiser returns."""
        return call.run()
