"""What people and schedulers ask of a running run: signals, a file, the time limit; asked once a step.

SIGTERM, SIGUSR1 and Ctrl-C save and stop; SIGUSR2, or a file named SAVE in the run directory, saves and goes on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from nemoalign.errors import Interrupted, Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What SLURM and people send; a second one ends the process at once, as it would without us."""

SAME_SECONDS = 0.5
"""Signals closer together are one: who stops a whole job reaches a rank directly and through its parent."""

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

    def obey(self, when: str, *, has_trained: bool) -> None:
        """Raise what ends the run, once everything is saved, where that was asked for.

        Raises:
            Stopped: or Interrupted, when it came from Ctrl-C.
        """
        saved = "everything is saved" if has_trained else "nothing was trained yet"
        self._end(f"{when}; {saved}. The same command goes on from here.")

    def obey_keeping_nothing(self, when: str) -> None:
        """Raise what ends work whose results appear when all of it is done, where that was asked for.

        Raises:
            Stopped: or Interrupted, when it came from Ctrl-C.
        """
        self._end(f"{when}; no file was written. The same command starts again.")

    def _end(self, how: str) -> None:
        if self.stop:
            kind = Interrupted if self.interrupt else Stopped
            raise kind(f"Stopped as asked {how}")

    def joined(self, later: Asked) -> Asked:
        """Return what was asked for at either time."""
        return Asked(
            self.stop or later.stop, self.interrupt or later.interrupt, self.save or later.save
        )


class Cut(Exception):
    """Somebody asked to stop in the middle of work that can be begun again; raised on every rank."""

    def __init__(self, asked: Asked) -> None:
        assert asked.stop, "only a wish to stop cuts work short"
        super().__init__("asked to stop in the middle of a step")
        self.asked = asked


class Requests:
    """Context in which a first signal to stop is remembered instead of ending the process.

    A run opens it before anything slow, so that no moment of a run is deaf.
    """

    def __init__(self, *, is_alone: bool = False) -> None:
        """With ``is_alone``, where no other rank waits for this process, a stop before training ends it."""
        self._began = time.monotonic()
        self._ends_at_once = is_alone
        self._stop: int | None = None
        self._heard = 0.0
        self._save = False
        self._deadline: float | None = None
        self._save_file: Path | None = None
        self._previous: dict[int, Any] = {}

    def training(self, max_seconds: int | None, directory: Path | None) -> None:
        """Training begins: from now on there is something to save, and what is asked waits for it.

        The time limit counts from the opening of this context; the run directory is for the one rank
        that looks there for a file.
        """
        self._ends_at_once = False
        self._deadline = None if max_seconds is None else self._began + max_seconds
        self._save_file = None if directory is None else directory / SAVE_FILE

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
        now = time.monotonic()
        if self._stop is None:
            self._stop, self._heard = number, now
            if self._ends_at_once:
                kind = Interrupted if number == signal.SIGINT else Stopped
                raise kind("Stopped as asked before training began. The same command starts again.")
        elif now - self._heard > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _remember_save(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._save = True
