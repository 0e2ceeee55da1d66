"""What has to be said of a family of denoisers where its class's signatures do not say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..examples.call import Rule, Sizes


@dataclass(frozen=True, eq=False)
class FamilyData:
    """Data of the denoiser classes of a family.

    Attributes:
        classes: their names.
        published: entries that a real model's configuration sets otherwise than the class's defaults, or has to set;
            they hold where no configuration is given.
        config: entries of the configuration of a small instance that the rules in `examples.shrink` get wrong.
        arguments: rules of arguments that `examples.arguments` gets wrong or does not know; a rule that returns None
            leaves the argument out.
        video: whether tokens have a frame axis, where the class's name does not end in "3DModel".
        fit: from the sizes asked for to those that the class takes, such as square images; None for even rows and
            columns where the class is a U-Net, else for those asked for.
        time_scale: the timestep at noise level 1; None for 1 where the class takes ids or shapes of packed images, else
            1000.
        flow_scale: of classes of rectified flow under any sampler: the timestep at noise level 1. 0 where only a
            pipeline tells.
        halves: whether pipelines run both guidance branches in one call, each in one half of the batch.
        unwired: why no stack goes on it, though a small instance runs; "" where one does.
    """

    classes: tuple[str, ...] = ()
    published: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Rule] = field(default_factory=dict)
    video: bool | None = None
    fit: Callable[[Sizes], Sizes] | None = None
    time_scale: float | None = None
    flow_scale: float = 0.0
    halves: bool = False
    unwired: str = ""
