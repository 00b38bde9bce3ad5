"""The one training loop: steps, consumed samples, validation, saving. It does no mathematics.

There is no ``if algorithm`` here and no callback list. A step: rows from the feed, one learner
step, one line in ``metrics.jsonl``; then, when due, validation and a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemoalign.errors import DivergedError, Stopped
from nemoalign.train.metrics import reduce_means, reduce_sums
from nemoalign.train.stopping import StopRequest

if TYPE_CHECKING:
    from pathlib import Path

    from nemoalign.log import ProgressBar, Reporter
    from nemoalign.train.checkpointing import Checkpointer
    from nemoalign.train.feed import Feed
    from nemoalign.train.learner import Learner, StepResult
    from nemoalign.train.records import RunDirectory
    from nemoalign.train.schedule import Schedule


@dataclass(frozen=True)
class LoopSettings:
    """Limits and intervals in optimizer steps (0 is never), and the learning rate over them."""

    max_steps: int
    steps_per_epoch: int
    global_batch_size: int
    val_every: int
    save_every: int
    max_seconds: int | None
    schedule: Schedule


@dataclass
class Progress:
    """Where a run stands; the only state of the loop, saved with every checkpoint."""

    step: int = 0
    consumed_samples: int = 0
    epoch: int = 0
    tokens: float = 0.0
    val_metrics: dict[str, float] | None = None


class Trainer:
    """Drives one run from its current step to ``max_steps``. Every rank runs one."""

    def __init__(
        self,
        learner: Learner,
        settings: LoopSettings,
        *,
        feeds: tuple[Feed | None, Feed | None],
        checkpointer: Checkpointer,
        records: RunDirectory | None,
        reporter: Reporter,
    ) -> None:
        self.learner = learner
        self.settings = settings
        self.train, self.validation = feeds
        self.checkpointer = checkpointer
        self.records = records
        self.reporter = reporter
        self.progress = Progress()

    def restore(self, checkpoint: Path) -> None:
        """Continue from ``checkpoint``: weights, optimizer and position. Collective."""
        self.progress = Progress(**self.checkpointer.restore(checkpoint))

    def fit(self) -> dict[str, Any]:
        """Train to ``max_steps`` and return the summary; equal on every rank.

        Raises:
            DivergedError: when the loss of a step is not a finite number.
            Stopped: after a signal or the time limit, once a checkpoint is written.
        """
        first_step = self.progress.step
        started = time.perf_counter()
        if self.progress.step == 0:
            self._validate()
        remaining = self.settings.max_steps - self.progress.step
        with (
            StopRequest(self.settings.max_seconds) as stop,
            self.reporter.progress("training", remaining, "steps") as bar,
        ):
            while self.progress.step < self.settings.max_steps:
                self._one_step(bar, stop)
        return {
            "steps": self.progress.step,
            "resumed_at": first_step,
            "consumed_samples": self.progress.consumed_samples,
            "tokens": int(self.progress.tokens),
            "seconds": round(time.perf_counter() - started, 3),
            **(self.progress.val_metrics or {}),
        }

    def _one_step(self, bar: ProgressBar, stop: StopRequest) -> None:
        assert self.train is not None, "a run with steps has training data"
        started = time.perf_counter()
        lr = self.settings.schedule.at(self.progress.step)
        micro_batches = self.train.step(self.progress.consumed_samples)
        result = self.learner.step(micro_batches, lr)
        local_tokens = sum(batch.num_tokens for batch in micro_batches)
        # One reduction tells every rank the tokens of the step and whether any rank was asked to stop.
        tokens, stops = reduce_sums(
            [local_tokens], [float(stop.asked)], self.learner.backend.device
        )
        self.progress.step += 1
        self.progress.consumed_samples += self.settings.global_batch_size
        self.progress.epoch = (self.progress.step - 1) // self.settings.steps_per_epoch
        self.progress.tokens += tokens
        self._log_step(result, lr, tokens / (time.perf_counter() - started))
        if not math.isfinite(result.metrics["loss"]):
            raise DivergedError(
                f"The loss at step {self.progress.step} is {result.metrics['loss']}; the step was not "
                f"applied. The learning rate was {lr:g}: lower it with --lr, or look at the rows."
            )
        bar.advance(1, loss=result.metrics["loss"], lr=lr)
        self._validate_and_save_when_due(stopping=stops > 0)

    def _log_step(self, result: StepResult, lr: float, tokens_per_second: float) -> None:
        self._log(
            {
                "split": "train",
                "step": self.progress.step,
                **result.metrics,
                "lr": lr,
                "grad_norm": result.grad_norm,
                "consumed_samples": self.progress.consumed_samples,
                "epoch": self.progress.epoch,
                "tokens_per_second": round(tokens_per_second, 1),
            }
        )

    def _validate_and_save_when_due(self, *, stopping: bool) -> None:
        step, last = self.progress.step, self.settings.max_steps
        if step == last or (self.settings.val_every and step % self.settings.val_every == 0):
            self._validate()
        due = self.settings.save_every and step % self.settings.save_every == 0
        if step == last or due or stopping:
            self.checkpointer.save(self.progress)
        if stopping and step < last:
            raise Stopped(
                f"Stopped as asked after step {step} of {last}; everything is saved. "
                "The same command goes on from here."
            )

    def _validate(self) -> None:
        """Compute every validation row once and log the means."""
        if self.validation is None:
            return
        parts = []
        left = len(self.validation.rows)
        with self.reporter.progress("validating", left, "rows") as bar:
            for micro_batches in self.validation.once():
                parts += self.learner.evaluate(micro_batches)
                bar.advance(min(left, self.settings.global_batch_size))
                left -= self.settings.global_batch_size
        names = self.learner.algorithm.metric_names
        means = reduce_means(parts, names, self.learner.backend.device)
        self.progress.val_metrics = {f"val_{name}": value for name, value in means.items()}
        self._log({"split": "val", "step": self.progress.step, **self.progress.val_metrics})

    def _log(self, values: Mapping[str, Any]) -> None:
        if self.records is not None:
            self.records.log(values)
        self.reporter.metrics(values)
