"""Where the state of a feature lies between its uses: on the device, or in the host's pinned memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Placement(Protocol):
    """Keeps the tensors of one feature.

    Attributes:
        on_host: whether what is kept takes no memory of the device.
    """

    on_host: bool

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is kept of a tensor that was just computed."""
        ...

    def get(self, kept: torch.Tensor) -> torch.Tensor:
        """A kept tensor, ready to be computed with."""
        ...


class OnDevice:
    """Kept where it was computed."""

    on_host = False

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def get(self, kept: torch.Tensor) -> torch.Tensor:
        return kept


class OnHost:
    """Kept in host memory, pinned where the device is CUDA, and copied back just before every use.

    Neither side streams nor events are needed: both copies are put on the current stream, the one that computes. There
    a tensor is complete before it is copied out, and copied out before it is copied back, whenever the host asks. The
    device memory that `put` leaves behind may be given away while its copy is still waiting, since torch's allocator
    gives it to work that comes later on that same stream; pinned memory that is let go is not used again before the
    copies that read it are done, which torch's host allocator sees to. The host itself never reads what is kept, so
    nothing has to wait for it. All this is as for any other state of the cache: whoever changes the current stream
    between two steps has to order the two.

    The price: copies on that stream do not overlap with the computing. A cached step waits for every tensor of its sum,
    order + 1 per feature; a full step for one copy out of all that it keeps, and one back of what its differences need
    and, to measure the forecast's error, of the sum's tensors. Torch may round a pinned block up to the next power
    of two bytes. Not measured on a GPU.

    Args:
        device: where tensors come from and go back to.
    """

    on_host = True

    def __init__(self, device: torch.device):
        self.device = device

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        kept = torch.empty_like(tensor, device="cpu", pin_memory=self.device.type == "cuda")
        return kept.copy_(tensor, non_blocking=True)

    def get(self, kept: torch.Tensor) -> torch.Tensor:
        return kept.to(self.device, non_blocking=True, copy=True)


ON_DEVICE = OnDevice()

Place = Callable[[int, torch.device], Placement]


def all_on_device(number: int, device: torch.device) -> Placement:
    """Nothing is moved."""
    return ON_DEVICE


def first_on_device(count: int) -> Place:
    """The first `count` features stay on the device, in the order in which they are first kept; all others leave it."""
    return lambda number, device: ON_DEVICE if number < count else OnHost(device)
