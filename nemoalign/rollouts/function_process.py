"""The side of the run of one process that calls a person's function: ask, listen, and know how it ended.

Only ``listen`` waits, for all processes together and never longer than one of them may take.
"""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nemoalign
from nemoalign.config.values import RewardSource
from nemoalign.errors import ResourceError
from nemoalign.rollouts.function_call import Row, place_in

START_SECONDS = 600.0
"""How long an import may take; other packages may have much to compile."""
GRACE_SECONDS = 2.0
"""How long after its time a process may take to end itself and to write where it stood."""

_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_CHUNK = 1 << 20
_REAP_SECONDS = 5.0
_WORKER = """
import sys
sys.path.append(sys.argv.pop(1))
from nemoalign.rollouts.function_worker import main
main(sys.argv[1:])
"""


class Ended(Exception):
    """The process is no more, or no use any more."""


class FunctionProcess:
    """One started process; what it was asked is its ``task`` until it answered or ended."""

    def __init__(self, source: RewardSource, seconds: float) -> None:
        """Start a process that imports ``source``; a call may take ``seconds`` an answer.

        It is a new program, not a fork, in a session of its own: it shares neither memory, GPU nor
        terminal with this process. What the function prints goes to stderr.

        Raises:
            ResourceError: when the system has no room for another process.
        """
        self.task: range | None = None
        self.about: Mapping[str, Any] | None = None
        """What the process said of the function when it had imported it: ``file`` and ``batched``."""
        self.deadline = time.monotonic() + START_SECONDS
        self._seconds = seconds
        self._unsent, self._unread = b"", b""
        self._faults = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process is dead
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        passed = theirs.fileno(), self._faults.fileno()
        package = str(Path(nemoalign.__file__).parents[1])
        words = package, *passed, source.module, source.function, seconds
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-uPc", _WORKER, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=passed,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name not in _OF_A_RANK},
            )
        except OSError as error:
            self._close()
            raise ResourceError(
                f"The system starts no more processes for --reward {source.name}: {error.strerror}. "
                "Use fewer of them."
            ) from error
        finally:
            theirs.close()

    @property
    def is_free(self) -> bool:
        """True when it has imported the function and waits for answers to reward."""
        return self.about is not None and self.task is None

    @property
    def is_alive(self) -> bool:
        """False once the process has ended, from whatever cause."""
        return self._process.poll() is None

    @property
    def is_late(self) -> bool:
        """True when it has taken longer than it may for what it does now."""
        return time.monotonic() >= self.deadline

    @property
    def wants(self) -> int:
        """Which events of ``channel`` matter now."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)

    def ask(self, task: range, rows: Sequence[Row]) -> None:
        """Ask for the rewards of ``rows``, which are remembered as ``task``."""
        self.task = task
        self.deadline = time.monotonic() + self._seconds * len(rows) + GRACE_SECONDS
        self._unsent = json.dumps(rows, default=_plain).encode() + b"\n"
        self.send()

    def send(self) -> None:
        """Send as much as the process takes now."""
        with suppress(
            OSError
        ):  # it does not take anything yet, or is dead, which receiving will tell
            self._unsent = self._unsent[self.channel.send(self._unsent) :]

    def receive(self) -> Any:
        """Return what the process says, None as long as that is not complete.

        Raises:
            Ended: when it has ended.
        """
        try:
            received = self.channel.recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        self._unread += received
        if not received:
            raise Ended
        if not self._unread.endswith(b"\n"):
            return None
        line, self._unread, self.deadline = self._unread, b"", math.inf
        try:
            return json.loads(line)
        except ValueError as error:  # the function wrote where it has no business
            raise Ended from error

    def end(self) -> None:
        """End the process and all that it started."""
        self._kill()
        self._close()

    def post_mortem(self) -> dict[str, str]:
        """End the process, and return the failure that its end was, as ``FunctionCall.results`` words it."""
        late = self.is_alive and self.is_late
        code = self._kill()
        self._faults.seek(0)
        dump = self._faults.read().decode(errors="replace")
        self._close()
        about = self.about or {}
        kind = _death(code)
        if late or dump.startswith("Timeout ("):
            kind = f"took longer than {self._seconds if about else START_SECONDS:g} s"
        return {"kind": kind, "message": "", "where": _innermost(dump, about.get("file", ""))}

    def _kill(self) -> int:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(
            subprocess.TimeoutExpired
        ):  # the system may take its time, and we do not wait
            return self._process.wait(_REAP_SECONDS)
        return -signal.SIGKILL

    def _close(self) -> None:
        self.channel.close()
        self._faults.close()


def listen(processes: Sequence[FunctionProcess]) -> list[tuple[FunctionProcess, Any]]:
    """Wait until a process says something, and return what; None for one that has ended or is late.

    What is still to be sent is sent meanwhile. The list may be empty.
    """
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.channel, process.wants, process)
        nearest = min(process.deadline for process in processes)
        remaining = None if nearest == math.inf else max(0.0, nearest - time.monotonic())
        ready = [(key.data, mask) for key, mask in selector.select(remaining)]
    heard: list[tuple[FunctionProcess, Any]] = []
    for process, mask in ready:
        if mask & selectors.EVENT_WRITE:
            process.send()
        if mask & selectors.EVENT_READ:
            try:
                said = process.receive()
            except Ended:
                heard.append((process, None))
            else:
                heard += [(process, said)] if said is not None else []
    known = [process for process, _ in heard]
    return heard + [(p, None) for p in processes if p.is_late and p not in known]


def _death(code: int) -> str:
    if code >= 0:
        return f"ended its process with exit code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return f"was killed ({name}), most likely because the machine ran out of memory,"
    return f"crashed ({name})"


def _innermost(dump: str, file: str) -> str:
    """Return where the main thread stood, "" when the dump of faulthandler does not tell.

    Its threads come newest first, so ours is the last; its frames come innermost first.
    """
    thread = re.split(r"^(?:Current )?[Tt]hread 0x.*$", dump, flags=re.MULTILINE)[-1]
    frames = re.findall(r'^  File "(.*)", line (\d+) in ', thread, re.MULTILINE)
    return place_in(file, frames)


def _plain(value: Any) -> Any:
    """Return what JSON knows for a value of a row that it does not know: numpy's, dates, bytes."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
