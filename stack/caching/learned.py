"""Corrections of estimates that calibration has learnt from a few uncached runs, shared by all prompts.

A denoiser call estimates the clean sample x0. With a corrector all estimates of a request are known, and so are the
differences between them. A correction is a linear form in such differences, one form per call:

- "l2p": on a cached step the differences of the past full steps' estimates, with a weight each. Added to the default
  forecast, which is a linear form in the same estimates, it is the forecast with weights learnt per step (L2P).
- "low-rank": on a full step, which saw a latent that forecasts had led astray, what the latent is to be moved by and
  the last differences, mapped inside a principal subspace of the channels that all prompts share (LearniBridge).

Without forms, or with forms of zeros, nothing changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..core.errors import StackError
from ..core.validate import checked
from .fitted import Fitted, read

KINDS = ("l2p", "low-rank")
PAST = 3  # full steps whose estimates are kept: two differences
SAME = 1e-4  # relative: noise levels nearer than that are the same
HOW = "stack.calibrate(...).cache.policy.learned.save(...)"


class Corrections(Protocol):
    """What a corrector asks at every call."""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        ...

    def holds(self, sigmas: Sequence[float]) -> bool:
        """Whether there are forms for a request with these noise levels."""
        ...

    def correction(self, key: str, parts: Sequence[torch.Tensor], x0: torch.Tensor) -> torch.Tensor | None:
        """What is to be added to an estimate (B, N, C); None for nothing.

        Args:
            key: of the call, see `key_of`.
            parts: (B, N, C) each, the differences that its form is of.
            x0: the estimate as it is.
        """
        ...


def key_of(branch: str, before: int, call: int) -> str:
    """The name of a form: guidance branch, last full step before the call, and the call."""
    return f"{branch}/{before}/{call}"


@dataclass(frozen=True, eq=False)
class Learned(Fitted):
    """Made by `Stack.calibrate`, kept in a safetensors file beside the recipe.

    Attributes:
        kind: "l2p" or "low-rank".
        full_steps: the schedule that they were learnt on.
        sigmas: noise levels of all calls of those runs.
        forms: by `key_of`; (k,) weights of "l2p", (k r, r) matrices of "low-rank".
        basis: (C, r) with orthonormal columns, of "low-rank"; (0, 0) of "l2p".
    """

    kind: str
    full_steps: tuple[int, ...]
    sigmas: tuple[float, ...]
    forms: Mapping[str, torch.Tensor]
    basis: torch.Tensor

    def __repr__(self) -> str:
        return f"Learned({self.kind!r}, family={self.family!r}, {len(self.forms)} forms, full_steps={self.full_steps})"

    def holds(self, sigmas: Sequence[float]) -> bool:
        """Whether a request has the noise levels that they were learnt on."""
        pairs = zip(sigmas, self.sigmas, strict=False)
        return len(sigmas) == len(self.sigmas) and all(math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) for a, b in pairs)

    def correction(self, key: str, parts: Sequence[torch.Tensor], x0: torch.Tensor) -> torch.Tensor | None:
        """See `Corrections.correction`."""
        form = self.forms.get(key)
        return None if form is None else applied(form, parts, self.basis)

    def save(self, path: str | Path) -> None:
        """Write them to a safetensors file."""
        about = {"full_steps": json.dumps(self.full_steps), "sigmas": json.dumps(self.sigmas)}
        self._write(path, {"basis": self.basis, **self.forms}, kind=self.kind, **about)


def applied(form: torch.Tensor, parts: Sequence[torch.Tensor], basis: torch.Tensor) -> torch.Tensor:
    """A form of these parts (B, N, C)."""
    if form.ndim == 1:
        return torch.stack([weight * part for weight, part in zip(form.tolist(), parts, strict=True)]).sum(0)
    inside = torch.cat([part @ basis.to(part) for part in parts], -1)
    return (inside @ form.to(inside)) @ basis.to(inside).mT


def load_learned(path: str | Path) -> Learned:
    """Read what `Learned.save` wrote.

    Raises:
        StackError: no such file, or one of something else.
    """
    about, forms = read(path, "learned corrections", HOW)
    if about.get("kind") not in KINDS or "basis" not in forms:
        raise StackError(f"{path} holds no learned corrections: expected a file that {HOW} wrote")
    basis = forms.pop("basis")
    try:
        read_steps, read_sigmas = (json.loads(about[name]) for name in ("full_steps", "sigmas"))
    except (KeyError, ValueError, RecursionError):
        raise StackError(f"{path}: full_steps and sigmas: expected JSON") from None
    full_steps = checked(tuple[int, ...], tuple(read_steps), f"{path}: full_steps")
    sigmas = checked(tuple[float, ...], tuple(read_sigmas), f"{path}: sigmas")
    shape = (1, 0) if about["kind"] == "l2p" else (2, basis.shape[-1])
    for key, form in forms.items():
        if form.ndim != shape[0] or basis.ndim != 2 or (form.ndim == 2 and form.shape[1] != shape[1]):
            raise StackError(f"{path}: {key}: expected a form of kind {about['kind']}, got shape {tuple(form.shape)}")
    known = {name: about[name] for name in ("family", "blocks", "width", "made_under", "kind")}
    return Learned(**known, full_steps=full_steps, sigmas=sigmas, forms=forms, basis=basis)
