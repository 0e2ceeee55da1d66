"""What this GPU computes, and how fast: every pass against a CPU, single kernels, FLUX.1-dev's shape.

python benchmarks/gpu_check.py --references                          latents of a CPU, a few minutes, no GPU
python benchmarks/gpu_check.py --device cpu --tiny --out runs/dry    a dry run
python benchmarks/gpu_check.py --only smoke,micro --budget 230       on a GPU
python benchmarks/gpu_page.py runs/gpu                               its page

Each row is written before the next one starts. The same command goes on where it stopped; see benchmarks/gpu/README.md.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from gpu.journal import Journal, is_measured
from gpu.parts import PARTS, parts_named
from gpu.runner import ContextLost, Runner
from gpu.setting import Setting
from gpu.smoke import make_references
from gpu.versions import machine_and_versions

from stack.core.errors import StackError
from stack.loading import device_of


def main(
    only: Annotated[str, typer.Option(help="parts with commas between")] = ",".join(PARTS),
    out: Annotated[Path, typer.Option(help="folder of the rows")] = Path("runs/gpu"),
    budget: Annotated[float, typer.Option(help="seconds; a row that wants more than is left is skipped")] = 540.0,
    device: str = "cuda",
    tiny: Annotated[bool, typer.Option(help="small models and few steps: a dry run")] = False,
    rows: Annotated[list[str] | None, typer.Option(help="wildcards, several times; '*': all, dry too")] = None,
    again: Annotated[bool, typer.Option(help="measure rows that are measured already")] = False,
    compiled: Annotated[bool | None, typer.Option(help="compile blocks; a dry run leaves it out")] = None,
    references: Annotated[bool, typer.Option(help="compute the latents of a CPU, and nothing else")] = False,
    latents: Annotated[Path | None, typer.Option(help="file of these latents, elsewhere than in runs")] = None,
) -> None:
    """Measure the rows that are not measured yet."""
    try:
        place, compiling = device_of("cpu" if references else device), not tiny if compiled is None else compiled
        file = latents or Path("runs") / f"gpu-references{'-tiny' if tiny else ''}.safetensors"
        setting = Setting(place, tiny, compiling, file, brief=tiny and not rows)
        if references:
            print(f"written: {file}, {make_references(setting) / 2**20:.2f} MiB")
            return
        measure(setting, parts_named(only), Journal(out), budget, tuple(rows or ()), again)
    except StackError as error:
        raise SystemExit(f"error: {error}") from None


@torch.no_grad()
def measure(
    setting: Setting, parts: list[str], journal: Journal, budget: float, names: tuple[str, ...], again: bool
) -> None:
    """Run the parts, and say at the end what was kept, however it ended."""
    runner = Runner(journal, setting, budget, names, again)
    journal.start(*machine_and_versions(setting.device), setting.tiny)
    if "smoke" in parts and not setting.references.is_file():
        print(f"no latents of a CPU in {setting.references}: smoke compares with nothing; --references makes them")
    ended = "done"
    try:
        for late, part in product((False, True), parts):
            runner.run(row for row in PARTS[part](setting) if row.late == late)
    except KeyboardInterrupt:
        ended = "stopped"
    except ContextLost as lost:
        ended = f"the device is lost ({lost}), no further row can run"
    held = sum(map(is_measured, journal.lines()))
    print(
        f"{ended}: {runner.written} rows written now, {held} measurements in {journal.path}; "
        f"{runner.left:.0f} s of the budget left. The same command goes on with what is missing.",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
