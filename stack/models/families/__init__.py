"""Data of denoiser families, one file each; a class that needs none is in no file."""

import importlib
import pkgutil

from ...core.errors import StackError
from .base import FamilyData


def _every() -> list[FamilyData]:
    """The families of all files of this folder."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [entry for module in modules for entry in vars(module).values() if isinstance(entry, FamilyData)]


FAMILIES: dict[str, FamilyData] = {name: family for family in _every() for name in family.classes}
"""Class name to the family's data: a registry, see `register_family`."""


NO_DATA = FamilyData()


def family_of(cls: type) -> FamilyData:
    """The data of a class, or of the nearest of its parents that has any; empty where none has."""
    return next((FAMILIES[kind.__name__] for kind in cls.__mro__ if kind.__name__ in FAMILIES), NO_DATA)


def register_family(family: FamilyData) -> FamilyData:
    """Make the data of a family known, such as one whose classes are not diffusers' own.

    It holds for models that a stack is put on afterwards, and takes the place of what was known of its classes.

    Raises:
        StackError: it names no class.
    """
    if not family.classes:
        raise StackError("a family needs the names of its classes: expected FamilyData(classes=(NAME, ...))")
    FAMILIES.update(dict.fromkeys(family.classes, family))
    return family


__all__ = ["FAMILIES", "FamilyData", "family_of", "register_family"]
