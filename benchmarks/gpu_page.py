"""The page of what GPUs measured: python benchmarks/gpu_page.py [runs/gpu ...] [--docs docs/benchmarks]

Each folder's rows become docs/benchmarks/gpu-DEVICE.json; all of these become docs/benchmarks/gpu.md.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from common import tell_targets
from gpu.journal import Journal, newest, start_of
from gpu.page import page
from gpu.targets import targets

from stack.comparison.record import save_json
from stack.core.errors import StackError


def record_of(folder: Path) -> dict[str, Any]:
    """What a run wrote, one line per row.

    Raises:
        StackError: there is no run in the folder.
    """
    journal = Journal(folder)
    lines = journal.lines()
    start = start_of(lines)
    if start is None:
        raise StackError(f"expected {journal.path} with the rows of gpu_check.py, found none: name its --out")
    rows = newest(lines)
    met = [asdict(target) | {"met": target.met} for target in targets(rows)[0]]
    return {**start, "rows": rows, "targets": met}


def name_of(machine: dict[str, Any]) -> str:
    """Such as "gpu-h100-80gb-hbm3"."""
    device = machine["vector"].removeprefix("NVIDIA ") if machine["device"] == "cuda" else "cpu"
    return f"gpu-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}"


def main(
    folders: Annotated[list[Path] | None, typer.Argument(help="what gpu_check.py was given as --out")] = None,
    docs: Annotated[Path, typer.Option(help="where records and page are")] = Path("docs/benchmarks"),
) -> None:
    """Write the records of these runs, and the page of all records there are."""
    try:
        for folder in folders or ():
            record = record_of(folder)
            path = docs / f"{name_of(record['machine'])}.json"
            save_json(record, path)
            print(f"written: {path}")
            tell_targets(targets(record["rows"])[0])
    except StackError as error:
        raise SystemExit(f"error: {error}") from None
    records = [json.loads(path.read_text()) for path in sorted(docs.glob("gpu-*.json"))]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "gpu.md").write_text(page(records))
    print(f"written: {docs / 'gpu.md'}")


if __name__ == "__main__":
    typer.run(main)
