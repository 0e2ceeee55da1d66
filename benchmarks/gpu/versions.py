"""What took part: the machine, and the versions of what only a GPU run needs."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch

from stack.comparison.record import machine
from stack.core.versions import versions

BESIDE = ("triton", "cache-dit", "sageattention", "bitsandbytes")


def machine_and_versions(device: torch.device) -> tuple[dict[str, Any], dict[str, str]]:
    """As every record of a benchmark has them, with CUDA's version and that of cuDNN."""
    known = versions()
    for name in BESIDE:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if device.type == "cuda":
        known |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return machine(str(device)), known
