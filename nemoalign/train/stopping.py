"""What people and schedulers ask of a running run: signals, a file, the time limit; asked once a step.

SIGTERM, SIGUSR1 and Ctrl-C save and stop; SIGUSR2, or a file named SAVE in the run directory, saves and goes on.
"""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What SLURM and people send; a second one ends the process at once, as it would without us."""

SAVE_SIGNAL = signal.SIGUSR2
SAVE_FILE = "SAVE"


@dataclass(frozen=True)
class Asked:
    """What all ranks together were asked for."""

    stop: bool = False
    interrupt: bool = False
    """The stop came from Ctrl-C."""
    save: bool = False

    @classmethod
    def of(cls, counts: list[float]) -> Asked:
        """Return what the sums of every rank's ``Requests.pending`` say."""
        stop, interrupt, save = counts
        return cls(stop > 0, interrupt > 0, save > 0)

    def joined(self, later: Asked) -> Asked:
        """Return what was asked for at either time."""
        return Asked(
            self.stop or later.stop, self.interrupt or later.interrupt, self.save or later.save
        )


class Requests:
    """Context in which a first signal is remembered instead of ending the process."""

    def __init__(self, max_seconds: int | None, directory: Path | None = None) -> None:
        """Take the time limit, and the run directory on the one rank that looks there for a file."""
        self._stop: int | None = None
        self._save = False
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._save_file = None if directory is None else directory / SAVE_FILE
        self._previous: dict[int, Any] = {}

    def pending(self) -> list[float]:
        """Return this rank's wishes as numbers to be summed over ranks; a wish to save is told once."""
        timed_out = self._deadline is not None and time.monotonic() >= self._deadline
        stop = self._stop is not None or timed_out
        save, self._save = self._save, False
        if self._save_file is not None and self._save_file.exists():
            self._save_file.unlink()
            save = True
        return [float(stop), float(self._stop == signal.SIGINT), float(save)]

    def __enter__(self) -> Requests:
        # Python delivers signals to the main thread only and lets no other one install handlers.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._remember_stop)
            self._previous[SAVE_SIGNAL] = signal.signal(SAVE_SIGNAL, self._remember_save)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember_stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._stop = number
        signal.signal(number, signal.SIG_DFL)

    def _remember_save(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._save = True
