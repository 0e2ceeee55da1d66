"""Data of denoiser families, one file each; a class that needs none is in no file."""

import importlib
import pkgutil

from .base import FamilyData


def _every() -> list[FamilyData]:
    """The families of all files of this folder."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [entry for module in modules for entry in vars(module).values() if isinstance(entry, FamilyData)]


FAMILIES: dict[str, FamilyData] = {name: family for family in _every() for name in family.classes}
"""Class name to the family's data."""

__all__ = ["FAMILIES", "FamilyData"]
