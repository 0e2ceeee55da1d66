"""Schedulers rebuilt from a card: its class, its settings, and exactly its noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler

from ..core.errors import StackError
from ..core.files import reason
from .card import CUSTOM, Card


class _Listed:
    """Noise levels of its own, whatever a pipeline computes: many take no `sigmas` argument.

    Attributes:
        listed: largest first and without the final 0.
    """

    listed: tuple[float, ...] = ()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """The listed noise levels.

        Raises:
            StackError: another number of steps is asked for.
        """
        given = next((len(values) for values in (sigmas, timesteps) if values is not None), num_inference_steps)
        if given != len(self.listed):
            raise StackError(f"the adapter's schedule has {len(self.listed)} steps, got {given}: call the stack for it")
        # diffusers annotates these arguments more narrowly than it uses them.
        parent: Any = super()
        parent.set_timesteps(sigmas=list(self.listed), device=device)


class ListedEuler(_Listed, FlowMatchEulerDiscreteScheduler):
    """Flow Euler on listed noise levels."""


class ListedLCM(_Listed, FlowMatchLCMScheduler):
    """As `ListedEuler`, with fresh noise on the x0 estimate at every step."""


LISTED: dict[str, Any] = {"FlowMatchEulerDiscreteScheduler": ListedEuler, "FlowMatchLCMScheduler": ListedLCM}


def scheduler_of(card: Card, base: Any, steps: int) -> Any | None:
    """A new scheduler as the card wants it; None where the pipeline's own stays.

    Args:
        base: the pipeline's scheduler; its settings are read only where the card says so.

    Raises:
        StackError: a scheduler that is not in diffusers, settings it does not know, or noise levels it cannot take.
    """
    choice, sigmas = card.scheduler, card.sigmas(steps)
    if choice.sampler == CUSTOM:
        raise StackError(f"card {card.name} needs {choice.name or 'a scheduler'} of its authors, which diffusers lacks")
    if not choice.name:
        if sigmas:
            raise StackError(f"card {card.name} lists noise levels: expected the class of their scheduler")
        return None
    kind: Any = getattr(diffusers, choice.name)
    if sigmas:
        if choice.name not in LISTED:
            raise StackError(f"{choice.name} takes no noise levels: expected one of {', '.join(LISTED)}")
        kind = LISTED[choice.name]
    settings = dict(choice.overrides)
    if unknown := sorted(settings.keys() - kind._get_init_keys(kind)):
        raise StackError(f"card {card.name}: {choice.name} knows no {', '.join(unknown)}")
    try:
        made = kind.from_config(base.config, **settings) if choice.from_base else kind(**settings)
    except Exception as error:  # every scheduler refuses its settings in its own way
        raise StackError(f"card {card.name}: {choice.name} refuses its settings ({reason(error)})") from None
    if sigmas:
        made.listed = sigmas
    return made
