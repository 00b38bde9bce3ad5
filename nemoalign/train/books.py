"""The books of a run: what it says, warns of and logs while it trains, and the summary of all of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from nemoalign.train.agreement import Attempt
from nemoalign.train.pace import open_pace

if TYPE_CHECKING:
    from nemoalign.log import Reporter
    from nemoalign.train.progress import Progress
    from nemoalign.train.records import RunDirectory
    from nemoalign.train.schedule import LoopSettings


class Books:
    """Kept by every rank alike; only rank 0 has ``records`` to write them to."""

    def __init__(self, records: RunDirectory | None, reporter: Reporter) -> None:
        """Open the books. Collective: ranks tell one another where they are."""
        self.pace = open_pace()
        self.attempt = Attempt()
        """Of writing to the run directory, on the one rank that does."""
        self.records = records
        self.reporter = reporter
        self.warnings: list[str] = []
        self._started = time.perf_counter()
        self._step_seconds = 0.0
        self._first = (0, 0.0)

    def go_on_from(self, progress: Progress) -> None:
        """Note what was trained before this process began."""
        self._first = progress.step, progress.tokens

    def log(self, values: Mapping[str, Any]) -> None:
        """Write and show one line of metrics."""
        if self.records is not None:
            self.attempt.run(partial(self.records.log, values))
        self.reporter.metrics(values)
        self._warn_of_troubles(values["step"])

    def log_step(
        self, values: Mapping[str, Any], tokens: float, seconds: float
    ) -> dict[str, float]:
        """Log a step of training with its speed and memory, and return these two for a progress bar."""
        self._step_seconds += seconds
        speed, memory = tokens / seconds, max(self.pace.memory)
        self.log({**values, "tokens_per_second": round(speed, 1), "memory_gib": round(memory, 3)})
        for text in self.pace.warnings():
            self.warn(values["step"], text)
        return {"tokens/s": round(speed), "GiB": round(memory, 2)}

    def warn(self, step: int, text: str) -> None:
        """Say a warning now, and keep it for summary and report."""
        self.reporter.warn(text)
        self.warnings.append(f"step {step}: {text}")
        if self.records is not None:
            self.attempt.run(partial(self.records.warn, step, text))

    def keep_answers(self, step: int, answers: Sequence[Mapping[str, str]]) -> None:
        """Write down what the model answered at a validation."""
        if self.records is not None:
            self.attempt.run(partial(self.records.keep_answers, step, answers))

    def keep_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write down what a step sampled and learned from."""
        if self.records is not None:
            self.attempt.run(partial(self.records.keep_rollouts, step, rows))

    def note_saved(self, step: int) -> None:
        """Draw the report anew: a checkpoint was written."""
        if self.records is not None:
            self.records.draw()
            self._warn_of_troubles(step)

    def summary(self, progress: Progress, settings: LoopSettings) -> dict[str, Any]:
        """Return where the run stands and what it took; equal on every rank, but for its times."""
        first_step, first_tokens = self._first
        best: dict[str, Any] = {}
        if progress.best_step is not None:
            value = progress.best(settings.mode)
            best = {"best": {settings.monitor: value, "step": progress.best_step}}
        speed = (progress.tokens - first_tokens) / max(self._step_seconds, 1e-9)
        return {
            "steps": progress.step,
            "resumed_at": first_step,
            "epochs": round(progress.step / settings.steps_per_epoch, 4),
            "consumed_samples": progress.consumed_samples,
            "tokens": int(progress.tokens),
            "tokens_per_second": round(speed, 1),
            "skipped_steps": progress.skipped,
            "seconds": round(time.perf_counter() - self._started, 3),
            "peak_memory_gib": round(max(self.pace.memory), 3),
            **(progress.val_metrics or {}),
            **best,
            "warnings": self.warnings,
            "ranks": self.pace.table(),
        }

    def _warn_of_troubles(self, step: int) -> None:
        for text in self.records.troubles() if self.records is not None else ():
            self.warn(step, text)
