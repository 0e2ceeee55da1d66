"""What holds for the tree as a whole: one name one thing, small files, no words that only the authors read."""

from __future__ import annotations

import ast
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

import stack

ROOT = Path(stack.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGEST, MEDIAN = 400, 110  # lines


def test_every_class_has_a_name_of_its_own() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(file.relative_to(ROOT)))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_files_are_small() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
    assert statistics.median(lengths.values()) <= MEDIAN


def test_functions_are_short() -> None:
    found = [
        (file.name, node.name)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert found == []


@pytest.mark.parametrize("file", ["docs/glossary.md"])
def test_the_glossary_has_one_sentence_per_term(file: str) -> None:
    rows = [line for line in (ROOT.parent / file).read_text().splitlines() if line.startswith("| ")]
    terms = [row.split(" | ") for row in rows if not row.startswith(("| term", "|---"))]
    assert len(terms) >= 40
    names = [name for name, _ in terms]
    assert len(set(names)) == len(names)
    assert [text for _, text in terms if not text.rstrip(" |").endswith(".") or ". " in text.rstrip(" |")] == []
