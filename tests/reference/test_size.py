"""`--size`: which model it asks for, and what calls say."""

from __future__ import annotations

import pytest

from stack import StackError
from stack.reference.load import at_size
from stack.runtime.call_arguments import sides_of


def test_a_size_is_a_side_or_width_times_height() -> None:
    assert sides_of("128") == (128, 128)
    assert sides_of("1280x720") == (1280, 720)
    for wrong in ("", "0", "128x", "x128", "-1", "128X128", "1280000"):
        with pytest.raises(StackError, match="--size must be WIDTHxHEIGHT in pixels"):
            sides_of(wrong)


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ("shapes-flux", None, "shapes-flux"),
        ("shapes-flux", "128", "shapes-flux-128"),
        ("shapes-flux", "128x128", "shapes-flux-128"),
        ("shapes-flux", "128x64", "shapes-flux"),
        ("shapes-flux", "64", "shapes-flux"),
        ("owner/name", "128", "owner/name"),
    ],
)
def test_weights_trained_at_a_size_are_taken_for_it(model: str, size: str | None, expected: object) -> None:
    assert at_size(model, size) == expected
