"""The one training loop: steps, consumed samples, validation, saving. It does no mathematics.

There is no ``if algorithm`` here and no callback list. A step: rows from the feed, one learner
step, one line in ``metrics.jsonl``; then, when due, validation and a checkpoint.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from nemoalign.errors import DivergedError
from nemoalign.parallel.measure import GIB, peak_memory
from nemoalign.train.agreement import gathered
from nemoalign.train.answers import FixedPrompts, shown
from nemoalign.train.books import Books
from nemoalign.train.health import Health, has_stopped_improving
from nemoalign.train.metrics import known, reduce_sums
from nemoalign.train.progress import Progress
from nemoalign.train.saving import Saving
from nemoalign.train.stopping import Asked, Cut, Requests
from nemoalign.train.validation import measure

if TYPE_CHECKING:
    from pathlib import Path

    from nemoalign.log import ProgressBar, Reporter
    from nemoalign.train.checkpointing import Checkpointer
    from nemoalign.train.feed import Feed, Feeds
    from nemoalign.train.records import RunDirectory
    from nemoalign.train.schedule import LoopSettings
    from nemoalign.train.trainee import StepResult, Trainee


class Trainer:
    """Drives one run from its current step to ``max_steps``. Every rank runs one."""

    def __init__(
        self,
        learner: Trainee,
        settings: LoopSettings,
        *,
        feeds: Feeds,
        checkpointer: Checkpointer,
        records: RunDirectory | None,
        reporter: Reporter,
    ) -> None:
        self.learner = learner
        self.settings = settings
        self.train, self.validation, self.test, self.prompts = feeds
        self.checkpointer = checkpointer
        self.records = records
        self.reporter = reporter
        self.progress = Progress()
        self.health = Health(settings.max_skipped)
        self.books = Books(records, reporter)
        self.test_metrics: dict[str, float] = {}
        self.saving = Saving(checkpointer, lambda text: self.books.warn(self.progress.step, text))
        self._overheard = Asked()
        learner.listen(self._hear)

    def restore(self, checkpoint: Path) -> None:
        """Continue from ``checkpoint``: weights, optimizer and position. Collective."""
        self.progress = Progress(**self.checkpointer.restore(checkpoint))
        self.books.go_on_from(self.progress)

    def fit(self, requests: Requests | None = None) -> dict[str, Any]:
        """Train to ``max_steps`` and return the summary; equal on every rank.

        ``requests`` are those that somebody opened before; else this opens its own.

        Raises:
            DivergedError: when several steps in a row have no finite loss and gradient.
            ResourceError: when the last checkpoint or the metrics could not be written.
            Stopped: after a signal or the time limit, once a checkpoint is written.
        """
        last, done = self.settings.max_steps, self.progress.step
        directory = None if self.records is None else self.records.path
        with nullcontext(requests) if requests else Requests() as self.requests:
            self._stop_if(self._agree()[1], "before training began")
            self.requests.training(self.settings.max_seconds, directory)
            self._begin()
            with self.reporter.progress("training", last, "steps", done) as bar:
                try:
                    while self.progress.step < last and not self._is_done():
                        self._one_step(bar)
                except DivergedError:
                    self.saving.finish()
                    raise
            self.saving.settle()
            self.test_metrics = self._test()
            self.books.attempt.agree()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return where the run stands and what it took; equal on every rank, but for its times."""
        return {**self.books.summary(self.progress, self.settings), **self.test_metrics}

    def _begin(self) -> None:
        """Validate before step 1, or what a stop kept the last start from validating."""
        if self.progress.step == 0:
            self._stop_if(self._validate(), "before step 1")
        elif self.progress.owes_validation:
            asked = self._validate()
            if not self.progress.owes_validation:
                self.saving.save(self.progress, must=asked.stop)
            self._stop_if(asked, f"after step {self.progress.step}")

    def _is_done(self) -> bool:
        """True when validation has stopped improving; said once, then the run ends as any other."""
        settings, seen = self.settings, self.progress.monitored
        if not has_stopped_improving(seen, settings.patience, settings.min_delta, settings.mode):
            return False
        self.reporter.say(
            f"{settings.monitor} has not improved in {settings.patience} validations: stopping early "
            f"after step {self.progress.step}"
        )
        if self.progress.step != self.checkpointer.saved_step:
            self.saving.save(self.progress, must=True)
        return True

    def _one_step(self, bar: ProgressBar) -> None:
        assert self.train is not None, "a run with steps has training data"
        started = time.perf_counter()
        progress = self.progress
        lr = self.settings.schedule.at(progress.step)
        micro_batches = self.train.step(progress.consumed_samples)
        data_seconds = time.perf_counter() - started
        try:
            result = self.learner.step(micro_batches, lr)
        except Cut as cut:
            self._stop_within_step(cut.asked)
            return
        if progress.step == 0 and (proof := self.learner.algorithm.check_start(result.metrics)):
            self.reporter.say(proof)
        local = result.tokens
        if local is None:
            local = sum(batch.num_tokens for batch in micro_batches)
        tokens, asked = self._agree(local, data_seconds + result.compute_seconds)
        places = partial(self.train.places, progress.consumed_samples, result.broken)
        rows = [] if result.applied else gathered(places())
        progress.step += 1
        progress.consumed_samples += self.settings.global_batch_size
        progress.epoch = (progress.step - 1) // self.settings.steps_per_epoch
        progress.tokens += tokens
        line = {
            "split": "train",
            "step": progress.step,
            **known(result.metrics),
            "lr": lr,
            "grad_norm": result.grad_norm,
            "consumed_samples": progress.consumed_samples,
            "epoch": progress.epoch,
            **({} if result.updates is None else {"updates": result.updates}),
            **result.extra,
        }
        shown = self.books.log_step(line, tokens, time.perf_counter() - started)
        if result.rollouts:
            self.books.keep_rollouts(progress.step, result.rollouts)
        self._watch(result, lr, rows)
        headline = {name: result.metrics[name] for name in self.learner.algorithm.shown}
        bar.advance(1, **headline, lr=lr, **shown)
        self._validate_and_save_when_due(asked)

    def _agree(self, local_tokens: int = 0, seconds: float | None = None) -> tuple[float, Asked]:
        """Return the tokens of all replicas and what any rank was asked for, in one reduction.

        It also tells every rank how much memory each one took, how long a step of training kept it
        busy, whether metrics could be written, and when all have written their part of a save.
        """
        device = self.learner.backend.device
        states = (self.books.attempt.has_failed, self.checkpointer.is_writing())
        asked = self.requests.pending()
        pace = self.books.pace.told(seconds or 0.0, peak_memory(device) / GIB)
        tokens, failed, writing, *rest = reduce_sums(
            [local_tokens], [*states, *asked, *pace], device
        )
        self.books.pace.take(rest[len(asked) :], is_step=seconds is not None)
        if failed:
            self.books.attempt.agree()
        if not writing:
            self.saving.finish()
        heard, self._overheard = self._overheard, Asked()
        return tokens, heard.joined(Asked.of(rest[: len(asked)]))

    def _hear(self, busy: bool) -> tuple[float, Asked]:
        """Agree amid a step or a measurement; what is heard here is answered after it."""
        at_work, self._overheard = self._agree(int(busy))
        return at_work, self._overheard

    def _stop_within_step(self, asked: Asked) -> None:
        """Leave everything as it was before the step, saved, and stop. Collective."""
        progress = self.progress
        self.saving.finish()
        if progress.step and (asked.save or self.checkpointer.saved_step != progress.step):
            self.saving.save(progress, must=True, archive=asked.save)
        self.saving.settle()
        self._stop_if(asked, f"in step {progress.step + 1}, which is to be made anew")

    def _watch(self, result: StepResult, lr: float, rows: list[str]) -> None:
        progress, loss = self.progress, result.metrics["loss"]
        if result.applied:
            progress.skipped_in_a_row = 0
            warning = self.health.spike(loss) or self.learner.algorithm.watch(result.metrics)
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
            warning = self.health.skipped(progress.step, loss, lr, rows, progress.skipped_in_a_row)
        if warning:
            self.books.warn(progress.step, warning)

    def _validate_and_save_when_due(self, asked: Asked) -> None:
        step, last = self.progress.step, self.settings.max_steps
        is_last = step == last
        if is_last or (self.settings.val_every and step % self.settings.val_every == 0):
            self.progress.owes_validation = self.validation is not None
            if not asked.stop:
                asked = asked.joined(self._validate())
        due = self.settings.save_every and step % self.settings.save_every == 0
        if is_last or due or asked.stop or asked.save:
            self.saving.save(self.progress, must=is_last or asked.stop, archive=asked.save)
            self.books.note_saved(step)
        if not is_last or self.progress.owes_validation:
            self._stop_if(asked, f"after step {step} of {last}")

    def _stop_if(self, asked: Asked, when: str) -> None:
        asked.obey(when, has_trained=self.progress.step > 0)

    def _validate(self) -> Asked:
        """Measure the validation rows and answer the prompts; return what was asked for meanwhile."""
        asked = Asked()
        if self.validation is not None:
            metrics, asked = self._measure(self.validation, "val", "validating")
            if metrics:
                self.progress.owes_validation = False
                self.progress.val_metrics = metrics
                if self.settings.monitor in metrics:
                    self.progress.note(metrics[self.settings.monitor], self.settings.mode)
        if self.prompts is not None and not asked.stop:
            asked = asked.joined(self._answer(self.prompts))
        return asked

    def _answer(self, prompts: FixedPrompts) -> Asked:
        """Let the model answer fixed prompts; keep all of it and show the first."""
        answers, asked = prompts.answer(self.learner, lambda busy: self._agree(int(busy)))
        self.books.keep_answers(self.progress.step, answers)
        for line in shown(answers):
            self.reporter.say(line)
        return asked

    def _test(self) -> dict[str, float]:
        """Measure the test rows with what the run ends with, and return the means."""
        if self.test is None:
            return {}
        metrics, asked = self._measure(self.test, "test", "testing")
        self._stop_if(asked, "before the test rows were measured")
        return metrics

    def _measure(self, feed: Feed, split: str, what: str) -> tuple[dict[str, float], Asked]:
        """Measure and log the rows of ``feed``; no means when a wish to stop came first."""
        measured = measure(feed, self.learner, self.reporter, lambda: self._agree()[1], what)
        if measured.means is None:
            return {}, measured.asked
        metrics = {f"{split}_{name}": value for name, value in measured.means.items()}
        self.books.log({"split": split, "step": self.progress.step, **metrics})
        return metrics, measured.asked
