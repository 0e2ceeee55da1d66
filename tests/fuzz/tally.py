"""What became of the cases of a fuzzer."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from stack import StackError

MOST_SHOWN = 10  # faults that are printed in full


@dataclass
class Tally:
    """Counts, and the cases that are faults of this project.

    Attributes:
        tracebacks: cases that ended in anything but a `StackError` of one line.
        changed: refusals that left a model changed, or a file that came back as another.
    """

    accepted: int = 0
    refused: int = 0
    tracebacks: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def take(self, case: str, run: Callable[[], object], named: str = "") -> bool:
        """Run a case; True if it was accepted.

        Args:
            case: in words, for a fault.
            named: what the line of a refusal has to name.
        """
        try:
            run()
        except StackError as error:
            self.refused += 1
            line = str(error)
            if not line or not line.isprintable() or named not in line:
                self.tracebacks.append(f"{case}\nnot one line that names {named!r}: {line!r}")
            return False
        except Exception:  # everything else is what the fuzzer looks for
            self.tracebacks.append(f"{case}\n{traceback.format_exc()}")
            return False
        self.accepted += 1
        return True

    @property
    def faults(self) -> list[str]:
        """All that is ours."""
        return [*self.tracebacks, *self.changed]

    def __str__(self) -> str:
        return (
            f"{self.accepted} accepted, {self.refused} refused, {len(self.tracebacks)} tracebacks, "
            f"{len(self.changed)} changed"
        )


def main(fuzz: Callable[[int, int], Tally], count: int) -> int:
    """A fuzzer as a command: --count and --seed; prints the counts, and 1 where a fault is ours."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tally = fuzz(given.count, given.seed)
    for fault in tally.faults[:MOST_SHOWN]:
        print(fault, "\n")
    print(tally)
    return 1 if tally.faults else 0
