"""Cells of `docs/models.md`: every column on the classes that people use most, and on a quarter of the others."""

from __future__ import annotations

import pytest

from .classes import some
from .columns import COLUMNS
from .page import PAGE, page
from .readme import README, written

CELLS = [(column, name) for at, (column, shown) in enumerate(COLUMNS.items()) for name in some(shown.classes(), at)]


@pytest.mark.parametrize(("column", "name"), CELLS)
def test_a_class_has_what_the_page_says(column: str, name: str) -> None:
    COLUMNS[column].check(name)


def test_the_page_is_written_from_these_checks() -> None:
    assert PAGE.read_text() == page()
    assert README.read_text() == written(README.read_text())
