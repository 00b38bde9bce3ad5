"""Starting the ranks of a run on this machine, or noticing that srun or torchrun has done so.

Nothing here imports torch: the parent of the ranks only watches. Ranks repeat the parent's command line
with RANK, WORLD_SIZE and the rest in their environment, as torchrun would start them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemoalign.errors import INTERRUPTED, STOPPED, ConfigError, NemoAlignError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nemoalign.config.schema import RunConfig
    from nemoalign.parallel.world import World

PARENT = "NEMOALIGN_PARENT"
REPORTS = "NEMOALIGN_REPORTS"
OUTPUT = "NEMOALIGN_EXP_MANAGER__EXPLICIT_LOG_DIR"
CLEAN_ENDS = (0, STOPPED, INTERRUPTED)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SETTLE_SECONDS = 1.0
"""After the first failure: how long the other ranks may take to fail too and say why."""
TERMINATE_SECONDS = 3.0
POLL_SECONDS = 0.05
STDERR_TAIL = 2000

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class _Report:
    """The last words of a rank."""

    message: str
    exit_code: int
    kind: str = "RankFailure"
    detail: str = ""
    seconds: float = 0.0


class RankFailure(NemoAlignError):
    """A rank ended with something other than 0; carries its words and its exit code."""

    def __init__(self, report: _Report) -> None:
        super().__init__(report.message)
        self.exit_code = report.exit_code
        self.kind = report.kind
        self.detail = report.detail


def wanted_ranks(config: RunConfig, world: World | None, environ: Mapping[str, str]) -> int:
    """Return how many ranks the run takes: those that were started, else what the settings ask for.

    Raises:
        ConfigError: when ranks were started, but not as many as the settings ask for.
        ResourceError: when there are fewer GPUs than that.
    """
    from nemoalign.parallel.world import visible_gpus

    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    if world is not None:
        asked = (devices or world.local_size) * (nodes or max(1, world.size // world.local_size))
        if (devices or nodes) and asked != world.size:
            raise ConfigError(
                f"{world.starter} started {world.size} ranks, but --devices and --num-nodes ask for "
                f"{asked}. Start as many, or leave both out."
            )
        return world.size
    if nodes is not None and nodes > 1:
        raise ConfigError(
            f"--num-nodes {nodes} needs somebody who starts ranks on every machine. "
            f"Type: srun nemoalign ... in a job of {nodes} nodes, or use torchrun."
        )
    gpus = visible_gpus(environ)
    if gpus and devices is not None and devices > gpus:
        raise ResourceError(f"--devices {devices} asks for more than the {gpus} GPUs there are.")
    model = config.model
    replica = model.tensor_model_parallel_size * model.pipeline_model_parallel_size
    return devices or gpus or replica * model.context_parallel_size


def rank_command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of a rank that repeats this program with ``arguments``."""
    import nemoalign

    # Python would look into the working directory first, where a random.py may lie.
    is_checkout = Path(nemoalign.__file__).parents[1] == Path.cwd()
    return [sys.executable, *([] if is_checkout else ["-P"]), "-m", "nemoalign", *arguments]


def start_ranks(
    command: Sequence[str], count: int, environ: Mapping[str, str], *, threads: int
) -> None:
    """Run ``count`` ranks of ``command`` to their end; rank 0 has this process's stdout and stderr.

    The first rank that fails ends the others. Signals that mean save or stop go to every rank.

    Raises:
        RankFailure: with the exit code and message of the first rank that failed or stopped early.
    """
    import tempfile

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
        ranks = _Ranks(command, count, shared, Path(directory))
        with ranks.hearing_signals():
            ranks.watch()
        ranks.judge()


class _Ranks:
    """The processes of one run on this machine."""

    def __init__(
        self, command: Sequence[str], count: int, environ: Mapping[str, str], directory: Path
    ) -> None:
        self.directory = directory
        self.first_failure: int | None = None
        self._interrupts = 0
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(count):
            self.processes.append(self._start(command, rank, environ))

    def _start(
        self, command: Sequence[str], rank: int, environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with self._stderr_file(rank).open("wb") as stderr:
            # A session of its own: Ctrl-C reaches the parent alone, which then tells every rank.
            return subprocess.Popen(
                command,
                env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if rank > 0 else None,
                stderr=stderr if rank > 0 else None,
                start_new_session=True,
            )

    @contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """Pass signals on to the ranks; a second Ctrl-C ends them at once."""
        before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._end(signal.SIGKILL)

    def _forward(self, number: int, frame: object) -> None:
        del frame
        self._interrupts += number == signal.SIGINT
        self._end(signal.SIGKILL if self._interrupts > 1 else signal.Signals(number))

    def watch(self) -> None:
        """Wait until every rank has ended; end the others when one fails."""
        while self._alive() and self.first_failure is None:
            time.sleep(POLL_SECONDS)
            for rank, process in enumerate(self.processes):
                if self.first_failure is None and process.poll() not in (None, *CLEAN_ENDS):
                    self.first_failure = rank
        if self.first_failure is not None:
            for patience, number in (
                (SETTLE_SECONDS, signal.SIGTERM),
                (TERMINATE_SECONDS, signal.SIGKILL),
            ):
                self._wait(patience)
                self._end(number)
        for process in self.processes:
            process.wait()

    def judge(self) -> None:
        """Raise what the first failing rank said, or return when all ended well."""
        codes = [process.returncode for process in self.processes]
        if not any(codes):
            return
        reports = sorted(_read_reports(self.directory), key=lambda r: (r.exit_code == 1, r.seconds))
        if reports:
            raise RankFailure(reports[0])
        rank = self.first_failure
        if rank is None:
            rank = next(i for i, code in enumerate(codes) if code)
        raise RankFailure(self._silent(rank, codes[rank]))

    def _silent(self, rank: int, code: int) -> _Report:
        """Return what there is to say of a rank that left no word: killed from outside, or crashed."""
        detail = self._stderr_file(rank).read_text(errors="replace")[-STDERR_TAIL:]
        if code >= 0:
            return _Report(f"rank {rank} ended with exit code {code}.", code, detail=detail)
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            return _Report(
                f"rank {rank} was killed ({name}), most likely because the machine ran out of "
                "memory. Use fewer ranks, a smaller --mbs or --recompute full.",
                ResourceError.exit_code,
                detail=detail,
            )
        return _Report(f"rank {rank} crashed ({name}).", 1, detail=detail)

    def _stderr_file(self, rank: int) -> Path:
        return self.directory / f"rank{rank}.stderr"

    def _alive(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _end(self, number: signal.Signals) -> None:
        """Send a signal to the ranks that live; to stop, also to what they started."""
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    if (
                        number in (signal.SIGTERM, signal.SIGKILL)
                        and self.first_failure is not None
                    ):
                        os.killpg(process.pid, number)
                    else:
                        process.send_signal(number)


def report_failure(
    message: str, exit_code: int, kind: str, detail: str, environ: Mapping[str, str]
) -> bool:
    """Leave a rank's last words for the parent that started it; return False when there is none."""
    directory = environ.get(REPORTS)
    if directory is None:
        return False
    target = Path(directory) / f"rank{environ['RANK']}.json"
    words = _Report(message, exit_code, kind, detail, time.time())
    with suppress(OSError):  # a parent that is gone has taken the directory along
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(words)))
        temporary.replace(target)
    return True


def _read_reports(directory: Path) -> list[_Report]:
    return [_Report(**json.loads(path.read_text())) for path in directory.glob("rank*.json")]


def follow_parent(environ: Mapping[str, str]) -> None:
    """In a rank that we started: die with the process that started it, however it dies."""
    parent = environ.get(PARENT)
    if parent is None:
        return
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
