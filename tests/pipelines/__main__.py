"""`python -m tests.pipelines`: runs every cell and writes `docs/pipelines.md`."""

from __future__ import annotations

import argparse
import sys
import time

import torch
from diffusers.utils import logging

from .build import PIPELINES
from .matrix import WRONG, pipeline_rows
from .page import PAGE, page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PIPELINES, help="one pipeline, printed and not written")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    rows = []
    for name in [only] if only else PIPELINES:
        started = time.process_time()
        rows += pipeline_rows(name)
        print(f"{name}: {time.process_time() - started:.0f} s of one thread", file=sys.stderr, flush=True)
    if only:
        print(page(rows))
    else:
        PAGE.write_text(page(rows))
    wrong = [f"{r.pipeline}, {r.scheduler}, {c}: {t}" for r in rows for c, t in r.cells.items() if t.startswith(WRONG)]
    print(f"{len(rows)} rows, {len(wrong)} cells wrong", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
