"""The page `docs/pipelines.md`: a table per pipeline."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .matrix import COLUMNS, Row

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
HEAD = """# Pipelines and schedulers

Small diffusers pipelines with random weights, with every scheduler of diffusers that they accept and four stacks. Every
cell is run by `python -m tests.pipelines`, which writes this page. Settings in brackets differ from the scheduler's
defaults; flow settings of flow models are not named.

| column | stack | what is shown |
|---|---|---|
| calls | | denoiser calls of one pipeline call |
| no pass | `Stack(pipe)` | outputs equal those of the pipeline |
| every step full | `.cache("svd", interval=1)` | outputs equal those of the pipeline, every call is full |
| svd | `.cache("svd")` | as many calls are full as the plan for this number of steps has |
| int8 | `.quantize("int8")` | outputs are rounded, and equal on every call |

In every cell, the report has a record for each denoiser call, calling the pipeline gives the same as calling the stack,
and after `undo()` outputs are as before. Equal means bit for bit.

| word | meaning |
|---|---|
| same | all of that holds |
| full a of b | all of that holds; a of b calls ran every block, as planned |
| full a of b, planned c, said: ... | more calls ran in full than planned, and the report says why |
| refused: ... | a `StackError` before anything ran |
| WRONG: ... | what does not hold |
"""


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    accepted = [row for row in rows if not row.not_accepted]
    verdicts = Counter(_kind(text) for row in accepted for text in row.cells.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(verdicts.items()))
    pipelines = list(dict.fromkeys(row.pipeline for row in rows))
    counts = f"{sum(verdicts.values())} cells of {len(accepted)} rows on {len(pipelines)} pipelines: {kinds}."
    return "\n".join([HEAD, counts, *(_section(name, [r for r in rows if r.pipeline == name]) for name in pipelines)])


def line(row: Row) -> str:
    """A row of a table."""
    cells = (row.cells.get(column, "") for column in COLUMNS)
    return f"| {setting(row.scheduler)} | {row.calls} | {' | '.join(cells)} |"


def _section(name: str, rows: Sequence[Row]) -> str:
    head = [f"\n## {name}\n", f"| scheduler | calls | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    return "\n".join([*head, *(line(row) for row in rows if not row.not_accepted), _others(rows)])


def _others(rows: Sequence[Row]) -> str:
    """What diffusers itself does not run, by its reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.not_accepted:
            reasons.setdefault(row.not_accepted, []).append(setting(row.scheduler))
    lines = (f"- diffusers: {why}: {', '.join(names)}" for why, names in sorted(reasons.items()))
    return "\n".join(["", "Not accepted by this pipeline without a stack:", "", *lines]) if reasons else ""


def setting(scheduler: str) -> str:
    """Without the word that all of them end in."""
    return re.sub(r"Scheduler\b", "", scheduler).replace("(", " (")


def _kind(verdict: str) -> str:
    if verdict.startswith("full"):
        return "more than planned and said" if "said" in verdict else "cached as planned"
    return verdict.split(":")[0]
