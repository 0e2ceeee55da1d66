"""Files that pages name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .blocks import ROOT

NAMED = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|toml|json|md|png))(?:::\w+)?`")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_by_a_page_exist(page: Path) -> None:
    within = (ROOT, ROOT / "stack", ROOT / "tests", ROOT / "docs", page.parent)
    named = NAMED.findall(page.read_text())
    assert [name for name in named if not any((folder / name).exists() for folder in within)] == []
