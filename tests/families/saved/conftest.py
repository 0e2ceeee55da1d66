"""Small operations only: on one thread they are quick on a busy machine too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipelines.build import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
