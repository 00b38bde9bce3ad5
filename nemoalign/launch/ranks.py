"""The ranks of a run on this machine: started, told of signals, watched, and judged by how they ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nemoalign.errors import INTERRUPTED, STOPPED, ResourceError
from nemoalign.launch.lifeline import PARENT
from nemoalign.launch.reports import REPORTS, RankFailure, Report, first_report, has_words
from nemoalign.train.stopping import SAME_SECONDS, SAVE_SIGNAL, STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Iterator

STOPS = (STOPPED, INTERRUPTED)
SETTLE_SECONDS = 1.0
"""After the first failure: how long the other ranks may take to fail too and say why."""
TERMINATE_SECONDS = 3.0
LEAVE_SECONDS = 60.0
"""After the first rank that stopped as asked: how long the others may take to do so."""
POLL_SECONDS = 0.05
STDERR_TAIL = 2000


def start_ranks(
    command: Sequence[str], count: int, environ: Mapping[str, str], *, threads: int
) -> None:
    """Run ``count`` ranks of ``command`` to their end; rank 0 has this process's stdout and stderr.

    The first rank that fails ends the others. Signals that mean save or stop go to every rank, and a
    second one that means stop ends them all at once.

    Raises:
        RankFailure: with the exit code and message of the first rank that failed or stopped early.
    """
    with tempfile.TemporaryDirectory(prefix="nemoalign-ranks-") as directory:
        shared = {
            **environ,
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS") or str(threads),
            PARENT: str(os.getpid()),
            REPORTS: directory,
        }
        ranks = _Ranks(Path(directory))
        with ranks.hearing_signals():
            for rank in range(count):
                ranks.start(rank, command, shared)
            ranks.watch()
        ranks.judge()


class _Ranks:
    """The processes of one run on this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self.first_failure: int | None = None
        self._dead: int | None = None
        """The rank that failed without a word: killed by somebody else, or crashed."""
        self._report: Report | None = None
        self._stop: tuple[signal.Signals, float] | None = None
        self._second_stop: signal.Signals | None = None

    def start(self, rank: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start one more rank."""
        with self._stderr_file(rank).open("wb") as stderr:
            # A session of its own: Ctrl-C reaches the parent alone, which then tells every rank.
            process = subprocess.Popen(
                command,
                env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if rank > 0 else None,
                stderr=stderr if rank > 0 else None,
                start_new_session=True,
            )
        self.processes.append(process)
        if self._stop is not None:
            process.send_signal(self._stop[0])

    @contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """Pass signals on to the ranks; after it nothing that a rank started lives."""
        forwarded = (*STOP_SIGNALS, SAVE_SIGNAL)
        before = {number: signal.signal(number, self._forward) for number in forwarded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._end(signal.SIGKILL)

    def _forward(self, number: int, frame: object) -> None:
        del frame
        now = time.monotonic()
        if number == SAVE_SIGNAL:
            self._tell(SAVE_SIGNAL)
        elif self._stop is None:
            self._stop = signal.Signals(number), now
            self._tell(self._stop[0])
        elif now - self._stop[1] > SAME_SECONDS:
            self._second_stop = signal.Signals(number)
            self._end(signal.SIGKILL)

    def watch(self) -> None:
        """Wait until every rank has ended; end the others when one fails, or stays when one stopped."""
        leave_by = float("inf")
        while self._alive() and self.first_failure is None and time.monotonic() < leave_by:
            time.sleep(POLL_SECONDS)
            codes = [process.poll() for process in self.processes]
            bad = [rank for rank, code in enumerate(codes) if code not in (None, 0, *STOPS)]
            self.first_failure = bad[0] if bad else None
            if leave_by == float("inf") and any(code in STOPS for code in codes):
                leave_by = time.monotonic() + LEAVE_SECONDS
        if self._alive():
            self._wait(SETTLE_SECONDS)
        codes = [process.poll() or 0 for process in self.processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (0, *STOPS)]
        self._dead = next((rank for rank in failed if not has_words(self.directory, rank)), None)
        # What ranks say once they are told to end is no reason for the end.
        self._report = first_report(self.directory)
        if self._alive():
            self._end(signal.SIGTERM)
            self._wait(TERMINATE_SECONDS)
            self._end(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def judge(self) -> None:
        """Raise what the first failing rank said, or return when all ended well."""
        codes = [process.returncode for process in self.processes]
        if self._second_stop is not None:
            raise RankFailure(
                Report(
                    f"A second signal ({self._second_stop.name}) ended the run at once, without saving. "
                    "The same command goes on from the last checkpoint.",
                    128 + self._second_stop,
                )
            )
        if not any(codes):
            return
        report = self._report
        # A rank that was killed has no words, but those it was connected to complain.
        if report is None or (report.is_echo and self._dead is not None):
            first = self.first_failure if self._dead is None else self._dead
            rank = next(i for i, code in enumerate(codes) if code) if first is None else first
            report = self._silent(rank, codes[rank])
        raise RankFailure(report)

    def _silent(self, rank: int, code: int) -> Report:
        """Return what there is to say of a rank that left no word: killed from outside, or crashed."""
        detail = self._stderr_file(rank).read_text(errors="replace")[-STDERR_TAIL:]
        if code >= 0:
            return Report(f"rank {rank} ended with exit code {code}.", code, detail=detail)
        if self._stop is not None and -code == self._stop[0]:  # it did not listen yet
            return Report(
                "Stopped as asked before training began. The same command starts again.",
                INTERRUPTED if self._stop[0] == signal.SIGINT else STOPPED,
            )
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            return Report(
                f"rank {rank} was killed ({name}), most likely because the machine ran out of "
                "memory. Use fewer ranks, a smaller --mbs or --recompute full.",
                ResourceError.exit_code,
                detail=detail,
            )
        return Report(f"rank {rank} crashed ({name}).", 1, detail=detail)

    def _stderr_file(self, rank: int) -> Path:
        return self.directory / f"rank{rank}.stderr"

    def _alive(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _tell(self, number: signal.Signals) -> None:
        """Send a signal to the ranks that live, and to nothing that they started."""
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        """Send a signal to all ranks and all that they started, which may live on without them."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
