"""How tight the bounds of `stack.bounds` and `boundbench.documented` are: bound over truth on typical inputs.

python benchmarks/bounds.py [--json docs/benchmarks/bounds.json]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from boundbench.table import CASES, LOOSEST, row_of
from common import Target, finish, show


def main(json: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """Measure, print, write the record."""
    rows = [row_of(case) for case in CASES]
    show("bound over truth", rows)
    targets = [Target(f"{row['bound']}: median of bound over truth", row["median"], LOOSEST, "<=") for row in rows]
    finish(rows, targets, "cpu", json)


if __name__ == "__main__":
    typer.run(main)
