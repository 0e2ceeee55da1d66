"""A measurement is kept as long as what it depends on is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stack.calibration.memoized import MemoizedAnalysis


@dataclass(frozen=True)
class Figure:
    value: float
    depends: dict[str, str]

    def holds_for(self, depends: Mapping[str, str]) -> bool:
        return self.depends == dict(depends)


def test_other_facts_drop_it_for_good() -> None:
    kept: MemoizedAnalysis[Figure] = MemoizedAnalysis()
    assert kept.current({"bits": "8"}) is None
    figure = kept.keep(Figure(0.01, {"bits": "8"}))
    assert kept.current({"bits": "8"}) is figure
    assert kept.current({"bits": "4"}) is None
    assert kept.current({"bits": "8"}) is None


def test_the_newest_stands() -> None:
    kept: MemoizedAnalysis[Figure] = MemoizedAnalysis()
    kept.keep(Figure(0.01, {}))
    newer = kept.keep(Figure(0.02, {}))
    assert kept.current({}) is newer
