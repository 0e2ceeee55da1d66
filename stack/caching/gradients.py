"""A cache is for inference: nothing it keeps holds a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..core.installer import Installer
from ..runtime.call import DenoiserCall, Entrance
from ..runtime.report import Journal

LOST = "called with a latent that wants gradients: under a cache outputs have none; undo() the cache to have them"


def without_gradients(entrance: Entrance, journal: Journal, install: Installer) -> None:
    """Call the denoiser without gradients, whatever the caller's mode, and say so where they were asked for.

    With them every kept feature would hold the graph of its step, and a cached step's would be those of a forecast.
    """

    def standing(inner: Callable[[DenoiserCall], Any]) -> Callable[[DenoiserCall], Any]:
        def run(call: DenoiserCall) -> Any:
            if torch.is_grad_enabled() and call.latent.requires_grad:
                journal.warn(LOST)
            with torch.no_grad():
                return inner(call)

        return run

    install.wrap_call(entrance, "run", standing)
