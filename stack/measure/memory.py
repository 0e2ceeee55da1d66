"""Peak memory while something runs."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch

_INTERVAL = 0.02  # seconds between two looks; a look costs about 10 microseconds


class PeakMemory:
    """Context manager; `.bytes` is the peak inside it, None where it cannot be measured honestly.

    CUDA: `torch.cuda.max_memory_allocated`, that is tensors alive, of this process on this device.
    CPU: the largest resident set of the whole process, looked at every 20 ms. It includes the interpreter, the
    libraries and memory that the allocator keeps from earlier rows, so compare rows by the difference, and small ones
    not at all. Other devices: None.
    """

    def __init__(self, device: torch.device):
        self.bytes: int | None = None
        self._device = device
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        elif self._thread is not None:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        peak = process.memory_info().rss
        while not self._stop.wait(_INTERVAL):
            peak = max(peak, process.memory_info().rss)
        self.bytes = max(peak, process.memory_info().rss)
