"""Time and memory of this rank, on CPU and CUDA alike."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

GIB = 2**30


class Stopwatch:
    """Seconds between ``start`` and ``stop`` as the device sees them; neither waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._start: Any = None
        self._stop: Any = None

    def start(self) -> None:
        """Begin anew."""
        self._start, self._stop = self._mark(), None

    def stop(self) -> None:
        """End here."""
        self._stop = self._mark()

    def seconds(self) -> float:
        """Return what was measured, 0 when it never ended; waits for the device when it is not there yet."""
        if self._start is None or self._stop is None:
            return 0.0
        if not self._on_cuda:
            return self._stop - self._start
        self._stop.synchronize()
        return self._start.elapsed_time(self._stop) / 1000

    def _mark(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this rank has held so far: of its GPU, else of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _peak_resident()


def _peak_resident() -> int:
    # ru_maxrss begins with the memory of the process that started this one; VmHWM does not.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
