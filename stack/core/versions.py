"""Versions of what figures depend on."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = (
    "ditstack", "torch", "diffusers", "transformers", "peft", "torchao", "bitsandbytes", "optimum-quanto",
    "sageattention", "triton", "cache-dit",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Python's version and those of `PACKAGES` that are installed, by name; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
