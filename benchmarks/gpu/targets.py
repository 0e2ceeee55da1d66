"""What a run has to reach, computed from its own rows. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from common import Target

from .flux import AT_28, HEADLINE
from .journal import Line, is_measured

OVER_COMPILED = 8.0
OVER_EAGER = 10.7  # what the SVD-Cache paper (arXiv 2601.07396) gives for its stack on FLUX.1-dev
DENOISER_SECONDS = 1.0  # 28 steps on one H200; SGLang with cache-dit takes 2.38 s end to end
HOST_MS = 0.5  # of our own, per cached step


def step_ms(line: Line) -> float:
    """Milliseconds of a request's step, cached ones included."""
    return 1e3 * line["seconds"] / line["steps"]


def base_of(lines: Sequence[Line], part: str, kind: str) -> Line | None:
    """The fastest base of a part: "eager", or "compiled" with whichever lossless kernel; None if none was measured."""
    bases = [line for line in lines if line["part"] == part and is_measured(line) and line.get("base") == kind]
    return min(bases, key=step_ms, default=None)


def speedup(line: Line, lines: Sequence[Line], kind: str) -> float | None:
    """How many times faster a step of this row is than one of its part's base, on average over the request."""
    base = base_of(lines, line["part"], kind)
    return None if base is None else step_ms(base) / step_ms(line)


def targets(lines: Sequence[Line]) -> tuple[list[Target], list[str]]:
    """The targets that the rows decide, and the names of those whose rows are missing."""
    rows = {line["row"]: line for line in lines if line["part"] == "flux" and is_measured(line)}
    best, short = rows.get(HEADLINE), rows.get(AT_28)
    values = (
        (f"{HEADLINE}: over the fastest compiled base", best and speedup(best, lines, "compiled"), OVER_COMPILED, ">="),
        (f"{HEADLINE}: over eager", best and speedup(best, lines, "eager"), OVER_EAGER, ">="),
        (f"{AT_28}: seconds in the denoiser, asked of an H200", short and short["seconds"], DENOISER_SECONDS, "<="),
        (f"{HEADLINE}: own host time per cached step, ms", best and best["host_cached_ms"], HOST_MS, "<="),
    )
    known = [Target(name, value, wanted, op) for name, value, wanted, op in values if value is not None]
    return known, [name for name, value, _, _ in values if value is None]
