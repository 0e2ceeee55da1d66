"""Every cell of `docs/models.md`, on every class; compiling, which takes seconds a class, on those people use most."""

from __future__ import annotations

import pytest

from .columns import COLUMNS
from .page import PAGE, page

MOST_USED = (
    "ZImageTransformer2DModel", "FluxTransformer2DModel", "Flux2Transformer2DModel", "QwenImageTransformer2DModel",
    "QwenImage21Transformer2DModel", "WanTransformer3DModel", "MiniMaxH3Transformer3DModel",
    "LTXVideoTransformer3DModel", "Flux3Transformer2DModel", "HunyuanVideoTransformer3DModel",
    "HunyuanVideo15Transformer3DModel", "Krea2Transformer2DModel", "Ideogram4Transformer2DModel",
    "SD3Transformer2DModel", "ChromaTransformer2DModel",
)  # fmt: skip
CELLS = [
    (column, name)
    for column, shown in COLUMNS.items()
    for name in (MOST_USED if column == "compile" else shown.classes())
]


@pytest.mark.parametrize(("column", "name"), CELLS)
def test_a_class_has_what_the_page_says(column: str, name: str) -> None:
    assert name in COLUMNS[column].classes()
    COLUMNS[column].check(name)


def test_the_page_is_written_from_these_checks() -> None:
    assert PAGE.read_text() == page()
