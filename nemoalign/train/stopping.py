"""Being asked to stop: signals and the time limit, turned into one question the loop asks per step."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM and people send; a second one ends the process at once, as it would without us."""


class StopRequest:
    """Context in which a first SIGTERM or SIGUSR1 is remembered instead of ending the process."""

    def __init__(self, max_seconds: int | None) -> None:
        self.signalled = False
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._previous: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """True once a signal came or the time is over; ranks combine their answers."""
        return self.signalled or (self._deadline is not None and time.monotonic() >= self._deadline)

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread only and lets no other one install handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signalled = True
        signal.signal(number, signal.SIG_DFL)
