"""The grid that the tokens of the current request lie on, read from the denoiser's own call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

Grid = tuple[int, ...]


class RequestGrid:
    """Read when it is first asked for in a request, and once: on an accelerator reading may wait for the device.

    Args:
        read: (arguments of the denoiser, by name) to the grid, see `Wiring.grid`.
        request: identifies the current request, by its number and its arguments.
        given: the arguments of the current call; empty outside of calls.
    """

    def __init__(
        self,
        read: Callable[[Mapping[str, Any]], Grid],
        request: Callable[[], Hashable],
        given: Callable[[], Mapping[str, Any]],
    ):
        self._read, self._request, self._given = read, request, given
        self._known: tuple[Hashable, Grid] | None = None

    def __call__(self) -> Grid:
        """(rows, columns) or (frames, rows, columns) of the output stream's tokens; () where they lie on no grid."""
        given = self._given()
        assert given, "asked outside of a call of the denoiser"
        if self._known is None or self._known[0] != self._request():
            self._known = self._request(), self._read(given)
        return self._known[1]
