"""Every cell of `docs/models.md`, on every class."""

from __future__ import annotations

import pytest

from .columns import COLUMNS
from .page import PAGE, page

CELLS = [(column, name) for column, shown in COLUMNS.items() for name in shown.classes()]


@pytest.mark.parametrize(("column", "name"), CELLS)
def test_a_class_has_what_the_page_says(column: str, name: str) -> None:
    COLUMNS[column].check(name)


def test_the_page_is_written_from_these_checks() -> None:
    assert PAGE.read_text() == page()
