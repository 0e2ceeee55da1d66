"""Latents that a CPU computed, for the smoke rows to be compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stack.attention.maps import KEY_BLOCK, QUERY_BLOCK
from stack.core.errors import StackError
from stack.measure.metrics import psnr

TILE = 128  # FlexAttention's on CUDA


@contextmanager
def tiles_of_cuda() -> Iterator[None]:
    """Cut attention on a CPU into the blocks that CUDA has, so that both drop the same ones."""
    with patch.dict(KEY_BLOCK, cpu=TILE), patch.dict(QUERY_BLOCK, cpu=TILE):
        yield


class References:
    """Latents (1, N, C) by name of their case, kept in half precision.

    Args:
        of: the steps and the size in pixels that they belong to.
    """

    def __init__(self, of: dict[str, int], latents: dict[str, torch.Tensor] | None = None):
        self.of, self.latents = of, latents or {}

    def save(self, path: Path) -> int:
        """Write them; returns the bytes of the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        halves = {name: latent.half().contiguous() for name, latent in self.latents.items()}
        save_file(halves, path, {key: str(value) for key, value in self.of.items()})
        return path.stat().st_size

    @classmethod
    def load(cls, path: Path, of: dict[str, int]) -> References:
        """What is there; nothing if there is no such file.

        Raises:
            StackError: the file belongs to other steps or another size.
        """
        if not path.is_file():
            return cls(of)
        with safe_open(path, "pt") as file:
            found = {key: int(value) for key, value in (file.metadata() or {}).items()}
            if found != of:
                raise StackError(f"{path} holds latents of {found}, expected {of}: make them again with --references")
            return cls(of, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  it is no dictionary

    def compare(self, name: str, base: str, latent: torch.Tensor) -> dict[str, object]:
        """PSNR in dB, as pictures, against the case's own reference, else the base's; None without either.

        Half precision alone costs as much as a PSNR of 80 dB.
        """
        against = name if name in self.latents else base if base in self.latents else None
        if against is None:
            return {"psnr": None, "against": "nothing"}
        told = "its own" if against == name else "the base"
        return {"psnr": psnr(picture(latent), picture(self.latents[against])), "against": told}


def picture(latent: torch.Tensor) -> torch.Tensor:
    """Packed pixels in [-1, 1] to [0, 1], as the pipeline shows them."""
    return (latent.float().cpu() / 2 + 0.5).clamp(0, 1)
