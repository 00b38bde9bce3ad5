"""The files of a run directory that people and scripts read: metrics, summary, how to repeat it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nemoalign.errors import ConflictError, ResourceError
from nemoalign.log import PlainReporter
from nemoalign.train.report.page import write_report
from nemoalign.train.rollout_file import ROLLOUTS, append_rows, forget_from

if TYPE_CHECKING:
    from nemoalign.train.sinks import Sink

SUMMARY = "summary.json"
GENERATIONS = "generations.jsonl"
METRICS = "metrics.jsonl"
WARNINGS = "warnings.jsonl"
FINISHED = "finished"
ABOUT = "run.json"
"""What the run was asked to do, with what; the report shows it."""

DRAWING_SHARE = 0.02
"""The report of a long run takes at most this share of its time."""


def finished_summary(directory: Path) -> dict[str, Any] | None:
    """Return the summary of a run that is complete, or None: one that stopped has a summary too."""
    path = directory / SUMMARY
    if not path.exists():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    # Runs from before there was a state wrote a summary only when they were complete.
    return summary if summary.get("state", FINISHED) == FINISHED else None


class RunDirectory:
    """One run's directory; only rank 0 makes one, and it holds the directory's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: IO[str] | None = None
        self._lock: int | None = None
        self.sinks: list[Sink] = []
        self._troubles: list[str] = []
        self._next_drawing = 0.0
        self._has_sampled = False

    def open(self) -> None:
        """Create the directory, take its lock and open ``metrics.jsonl`` for appending.

        Raises:
            ConflictError: when another process writes to this run directory.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConflictError(
                f"{self.path} is being written by another nemoalign process. "
                "Wait for it, or give this run its own directory with -o."
            ) from error
        # What an earlier part of the run said at its end is no longer so.
        (self.path / SUMMARY).unlink(missing_ok=True)
        _drop_half_a_line(self.path / METRICS)
        self._metrics = (self.path / METRICS).open("a", encoding="utf-8")

    def close(self) -> None:
        """Close ``metrics.jsonl`` and give up the lock."""
        if self._metrics is not None:
            with suppress(OSError):  # a line that a full disk refused, and log() has said so
                self._metrics.close()
        if self._lock is not None:
            os.close(self._lock)

    def describe(self, config_yaml: str, command: Sequence[str]) -> None:
        """Write ``config.yaml``, which alone repeats the run, and ``command.sh``."""
        _write_whole(self.path / "config.yaml", config_yaml)
        script = self.path / "command.sh"
        here = shlex.quote(str(Path.cwd()))
        _write_whole(script, f"#!/bin/sh\ncd {here} || exit\nexec {shlex.join(command)}\n")
        script.chmod(0o755)

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON document into the directory, whole or not at all."""
        _write_whole(self.path / name, json.dumps(document, indent=2) + "\n")

    def keep_answers(self, step: int, answers: Sequence[Mapping[str, str]]) -> None:
        """Append prompts with their answers to ``generations.jsonl``, an object each."""
        path = self.path / GENERATIONS
        with _writing(path), path.open("a", encoding="utf-8") as file:
            for answer in answers:
                file.write(json.dumps({"step": step, **answer}, ensure_ascii=False) + "\n")

    def keep_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append what a step sampled to ``rollouts.jsonl``, an object each.

        What an earlier part of the run, which was killed, left of this step and of later ones goes.
        """
        path = self.path / ROLLOUTS
        with _writing(path):
            if not self._has_sampled:
                forget_from(path, step)
                self._has_sampled = True
            append_rows(path, step, rows)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one JSON object to ``metrics.jsonl``, floats in full precision."""
        assert self._metrics is not None, "open() comes first"
        with _writing(self.path / METRICS):
            self._metrics.write(json.dumps(values) + "\n")
            self._metrics.flush()
        self._tell_sinks(lambda sink: sink.log(values))
        if values.get("split") != "train":
            self.draw()

    def warn(self, step: int, warning: str) -> None:
        """Append one warning to ``warnings.jsonl``."""
        path = self.path / WARNINGS
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "warning": warning}) + "\n")

    def draw(self, *, at_once: bool = False) -> None:
        """Write ``report.html`` anew, unless the last time took too long to do it again so soon."""
        started = time.monotonic()
        if started < self._next_drawing and not at_once:
            return
        try:
            write_report(self.path)
        except Exception as error:  # noqa: BLE001 - a picture must never end a run
            self._troubles.append(f"report.html could not be written: {error}")
            self._next_drawing = math.inf
            return
        ended = time.monotonic()
        self._next_drawing = ended + (ended - started) / DRAWING_SHARE

    def _tell_sinks(self, tell: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                tell(sink)
            except Exception as error:  # noqa: BLE001 - a copy of the metrics must never end a run
                self.sinks.remove(sink)
                self._troubles.append(f"{type(sink).__name__} gets no more metrics: {error}")

    def troubles(self) -> list[str]:
        """Return what went wrong here without ending the run, once."""
        found, self._troubles = self._troubles, []
        return found

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``; only its state ``finished`` says that the run is complete."""
        self.write(SUMMARY, summary)
        self._tell_sinks(lambda sink: sink.finish(summary))
        self.draw(at_once=True)
        for text in self.troubles():
            PlainReporter().warn(text)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one sentence that the disk is full."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{path} could not be written: {error.strerror or error}. Checkpoints are intact: make "
            "room, then type the same command: it goes on from the newest."
        ) from error


def _write_whole(path: Path, text: str) -> None:
    """Write ``text`` so that a kill at any instant leaves the file as it was or as it shall be."""
    temporary = path.with_name(f"{path.name}.tmp")
    with _writing(path):
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def _drop_half_a_line(path: Path) -> None:
    """Remove what a full disk left of a last line, so that the next one begins on its own."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
