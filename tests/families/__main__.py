"""`python -m tests.families`: checks every cell on every class, writes `docs/models.md` and the README's table."""

from __future__ import annotations

import argparse
import sys
import time

import torch
from diffusers.utils import logging

from .columns import COLUMNS
from .page import PAGE, page
from .readme import README, written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=COLUMNS, help="one column, checked and not written")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    wrong = []
    for column in [only] if only else COLUMNS:
        started, classes = time.process_time(), COLUMNS[column].classes()
        for name in classes:
            try:
                COLUMNS[column].check(name)
            except Exception as error:  # each cell is told, whatever is wrong with another
                wrong.append(f"{column}, {name}: {type(error).__name__}: {error}")
        print(f"{column}: {len(classes)} classes, {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
    print(f"{len(wrong)} cells wrong", *wrong, sep="\n")
    if not only and not wrong:
        PAGE.write_text(page())
        README.write_text(written(README.read_text()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
