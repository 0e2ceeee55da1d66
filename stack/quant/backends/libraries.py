"""The optional libraries: whether they are there, and what to install where they are not."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from ...core.errors import StackError


@functools.cache
def importable(module: str) -> bool:
    """Whether Python finds a module. Asked once; the module itself is not loaded, its parents are."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent is missing
        return False


@dataclass(frozen=True)
class Library:
    """What a backend needs.

    Attributes:
        backend: its name.
        module: what it imports.
        package: what pip installs, with the versions known to work.
    """

    backend: str
    module: str
    package: str

    @property
    def missing(self) -> str:
        """Why the backend cannot work, with the line that installs it; '' where the library is there."""
        return "" if importable(self.module) else self._needed(f"No module named {self.module!r}")

    def load(self) -> ModuleType:
        """The module.

        Raises:
            StackError: it is missing, or fails while it is imported.
        """
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise StackError(self._needed(str(error))) from None

    def _needed(self, reason: str) -> str:
        return f"quantize(backend={self.backend!r}) needs {self.module}: pip install '{self.package}' ({reason})"
