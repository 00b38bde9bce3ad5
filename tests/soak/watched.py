"""One real run of the real command, watched from outside: where it stands, who lives, what it left."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from nemoalign.train.sums import SUMS, find_damage

MARK = "NEMOALIGN_SOAK"
PATIENCE_SECONDS = 240
DEADLINE_SECONDS = 5.0
"""After the parent's death: how long anything of the run may live."""


class Watched:
    """A started ``nemoalign sft``; every process of it carries a mark in its environment."""

    def __init__(self, run: Path, arguments, *, file_bytes: int | None = None) -> None:
        self.run = run
        self.checkpoints = run / "checkpoints"
        self.mark = uuid.uuid4().hex
        self.log = run.with_name(f"{run.name}.log")
        self.saves_before = self._unfinished()
        self.lines_before = len(read_lines(run))
        self.began = time.monotonic()

        def limit() -> None:
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nemoalign", *map(str, arguments)],
                env={**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=limit,
                start_new_session=True,
            )

    def wait(self) -> int:
        """Return the exit code, negative for a signal."""
        return self.process.wait(PATIENCE_SECONDS)

    def has(self, condition) -> bool:
        """Wait until ``condition()`` is true; False when the run ends before."""
        deadline = self.began + PATIENCE_SECONDS
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"waited in vain: {self.said()}"
            time.sleep(0.001)
        return True

    def new_lines(self) -> list[dict]:
        """Return what this start has added to ``metrics.jsonl``."""
        return read_lines(self.run)[self.lines_before :]

    def steps(self) -> int:
        """Return how many steps this start has trained."""
        return sum(line["split"] == "train" for line in self.new_lines())

    def is_saving(self) -> bool:
        """True while a checkpoint that this start began has not got its name: the marker of a save."""
        return bool(self._unfinished() - self.saves_before)

    def _unfinished(self) -> set[tuple[str, int]]:
        found = set()
        newest = max(map(step_of, self.checkpoints.glob("megatron_gpt--*.ckpt")), default=-1)
        for path in self.checkpoints.glob(".megatron_gpt--*.tmp"):
            try:
                if step_of(path) > newest:  # an older one is on its way out
                    found.add((path.name, path.stat().st_ino))
            except FileNotFoundError:
                continue
        return found

    def living(self) -> list[int]:
        """Return the process ids of everything that belongs to this start; zombies have no environment."""
        mark = f"{MARK}={self.mark}".encode()
        return [pid for pid in _pids() if mark in _environ(pid)]

    def ranks(self) -> dict[int, int]:
        """Return the process id of every rank that was started; of the one process when there is one."""
        ours = [pid for pid in self.living() if _parent(pid) == self.process.pid]
        found = {}
        for pid in ours:
            told = [v for v in _environ(pid) if v.startswith(b"RANK=")]
            if told:
                found[int(told[0][5:])] = pid
        return found or {0: self.process.pid}

    def kill(self, *pids: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send ``number`` to processes of this run."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def seconds_until_gone(self) -> float:
        """Wait until nothing of the run lives and return how long that took; fail after the deadline."""
        began = time.monotonic()
        while survivors := self.living():
            waited = time.monotonic() - began
            assert waited < DEADLINE_SECONDS, f"survivors: {[_words(pid) for pid in survivors]}"
            time.sleep(0.02)
        return time.monotonic() - began

    def said(self) -> str:
        """Return what the run said on stderr."""
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """End whatever is left, when a check has failed."""
        self.kill(*self.living())
        self.process.wait()


def complete_steps(run: Path) -> list[int]:
    """Return the steps of the checkpoints a run has, after looking at every byte of them."""
    steps = []
    for path in (run / "checkpoints").glob("megatron_gpt--*.ckpt"):
        damage = find_damage(path)
        assert damage is None, f"{path.name}: {damage}"
        assert (path / SUMS).exists(), f"{path.name} has no sums"
        steps.append(json.loads((path / "progress.json").read_text())["step"])
    return sorted(steps)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    found = re.search(r"-step=(\d+)-", path.name)
    return int(found.group(1)) if found else -1


def read_lines(run: Path) -> list[dict]:
    """Return the complete lines of a run's ``metrics.jsonl``."""
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _words(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        command = "ended just now"
    return f"{pid} {command[:80]}"
