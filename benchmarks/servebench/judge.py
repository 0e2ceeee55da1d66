"""What a run of the serving benchmark comes to: targets and rows, from its findings."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from common import Target

from stack.runtime.fingerprint import Content

from .mix import TURNED, WHOLE
from .serve import Findings

GROWTH = 0.02  # of the resident memory, from the second to the last quarter; allocators keep what they once had


def growth(memory: Sequence[tuple[int, int]]) -> float:
    """Growth of the resident memory from the second quarter of all jobs to the last, relative."""
    last = memory[-1][0]
    early = [bytes_ for served, bytes_ in memory if 0.25 * last <= served <= 0.5 * last]
    late = [bytes_ for served, bytes_ in memory if served >= 0.75 * last]
    return median(late) / median(early) - 1 if early else 0.0


def rows_of(found: Findings) -> list[dict[str, Any]]:
    """How many jobs of each kind were served, and how."""
    return [{"how": how, "kind": kind, "jobs": count} for (how, kind), count in sorted(found.served.items())]


def targets_of(found: Findings, left: str) -> list[Target]:
    """What has to be true of a server.

    Args:
        left: what `undo()` left behind, in words.
    """
    several = sum(len(sizes) > 1 for sizes in found.state.values())
    turned = sum(count for (_, kind), count in found.served.items() if kind == TURNED)
    whole = sum(count for (_, kind), count in found.served.items() if kind in (WHOLE, TURNED))
    return [
        Target("answers or endings that are not a fresh stack's", len(found.wrong), 0, "<="),
        Target("whole requests held against a fresh stack", whole, 1),
        Target("requests whose state had another size at another time", several, 0, "<="),
        Target("growth of resident memory, second to last quarter", growth(found.memory), GROWTH, "<="),
        Target("states dropped per request whose weights change", found.drops / turned if turned else 1.0, 1.0),
        Target("things that undo() left behind", len(left), 0, "<="),
    ]


def look_at(denoiser: torch.nn.Module) -> tuple[Any, ...]:
    """Keys and content of a model, and which of its calls are wrapped."""
    wrapped = [name for name, module in denoiser.named_modules() if "forward" in vars(module)]
    return tuple(denoiser.state_dict()), Content([*denoiser.parameters(), *denoiser.buffers()]).value, tuple(wrapped)
