"""One training run from start to archive, on this rank. Read it top to bottom."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import torch

from nemoalign.parallel.device import select_backend

# The device decides how megatron-core's modules see torch, so it is chosen before they are imported.
select_backend()

from nemoalign.errors import ConflictError, DivergedError, Interrupted, ResourceError, Stopped
from nemoalign.log import PlainReporter, speaking_rank
from nemoalign.parallel.lost import lost_rank, naming_lost_ranks
from nemoalign.parallel.state import start
from nemoalign.run.about import about
from nemoalign.run.assemble import assemble, run_directory
from nemoalign.run.finish import finish
from nemoalign.run.prepare import prepare
from nemoalign.train.continuing import check_continues, has_other_length
from nemoalign.train.records import ABOUT, FINISHED, RunDirectory, finished_summary
from nemoalign.train.rotation import find_last, set_damaged_aside
from nemoalign.train.same_rows import check_same_rows, note_rows
from nemoalign.train.sinks import open_sinks

if TYPE_CHECKING:
    from pathlib import Path

    from nemoalign.config.merged import Merged
    from nemoalign.config.schema import RunConfig
    from nemoalign.log import Reporter
    from nemoalign.run.prepare import Prepared
    from nemoalign.train.loop import Trainer
    from nemoalign.train.stopping import Requests

STATES = ((Interrupted, "interrupted"), (Stopped, "stopped"), (DivergedError, "diverged"))
"""What a summary says of a run that ended before its last step; any other end has failed."""


def train(merged: Merged, reporter: Reporter, requests: Requests | None = None) -> dict[str, Any]:
    """Run the whole training on this rank and return its summary, equal on every rank.

    ``requests`` are signals that were listened for before; without them the loop listens by itself.

    Raises:
        NemoAlignError: with the exit code of what went wrong.
    """
    if not speaking_rank():
        reporter = PlainReporter(quiet=True)
    finished = _already_finished(merged)
    if finished is not None:
        reporter.say(f"{run_directory(merged.config)} holds this run, finished; nothing to do")
        return finished
    made = prepare(merged, reporter)
    directory = run_directory(merged.config)
    with naming_lost_ranks(), start(made.layout, seed=merged.config.model.seed) as backend:
        records = RunDirectory(directory) if speaking_rank() else None
        if records is not None:
            _open_records(records, merged)
            records.write("data_report.json", made.inputs.findings.document())
            records.write(ABOUT, about(merged, made))
        torch.distributed.barrier()
        trainer = None
        try:
            trainer = assemble(merged, made, backend, records, reporter, requests)
            with closing(trainer.learner), closing(trainer.checkpointer):
                _resume(trainer, merged.config, reporter)
                _open_sinks(trainer, merged)
                trainer.fit(requests)
                return finish(merged, made, trainer, _summary(merged, made, trainer), reporter)
        except BaseException as error:
            if records is not None:
                reason = lost_rank(error) or error
                _record_early_end(records, _summary(merged, made, trainer, reason))
            raise
        finally:
            if records is not None:
                records.close()


def _already_finished(merged: Merged) -> dict[str, Any] | None:
    """Return the summary of a run that ended here before; refuse a directory of another run.

    One that is now to be longer has not ended; one without a checkpoint has not begun.

    Every rank reads the same files before any rank writes one.
    """
    manager = merged.config.exp_manager
    directory = run_directory(merged.config)
    if manager.overwrite:
        return None
    has_begun = find_last(directory / "checkpoints") is not None
    if has_begun and not manager.resume_if_exists:
        raise ConflictError(
            f"{directory} holds a run already and --no-resume forbids continuing it. "
            "Give this one its own directory with -o, or replace it with --overwrite."
        )
    finished = finished_summary(directory)
    if has_begun or finished is not None:
        check_continues(directory, merged.to_yaml(), merged.algorithm)
    if finished is not None and not has_other_length(directory, merged.to_yaml(), merged.algorithm):
        return finished
    if has_begun:
        check_same_rows(directory, _files_of_rows(merged.config), merged.algorithm)
    return None


def _files_of_rows(config: RunConfig) -> list[Path]:
    data = config.model.data
    return [file.path for part in (data.train_ds, data.validation_ds) for file in part.file_path]


def _open_records(records: RunDirectory, merged: Merged) -> None:
    """Take the run directory's lock and write how to repeat the run."""
    if merged.config.exp_manager.overwrite and records.path.exists():
        shutil.rmtree(records.path)
    records.open()
    if find_last(records.path / "checkpoints") is None:
        note_rows(records.path, _files_of_rows(merged.config))
    records.describe(merged.to_yaml(), [sys.executable, "-m", "nemoalign", *sys.argv[1:]])


def _resume(trainer: Trainer, config: RunConfig, reporter: Reporter) -> None:
    """Continue from the newest complete checkpoint of the run directory, if there is one."""
    directory = run_directory(config) / "checkpoints"
    for damage in set_damaged_aside(directory):
        reporter.warn(damage)
    if speaking_rank():
        trainer.checkpointer.rotation.sweep()
    last = find_last(directory)
    if last is not None:
        trainer.restore(last)
        reporter.say(f"continuing {last.parent.parent} after step {trainer.progress.step}")


def _open_sinks(trainer: Trainer, merged: Merged) -> None:
    """Open what else the metrics go to, on rank 0; all ranks end together where that fails."""
    records, attempt = trainer.records, trainer.books.attempt
    if records is not None:
        step = trainer.progress.step
        records.sinks = attempt.run(lambda: open_sinks(merged, records.path, step)) or []
    attempt.agree()


def _summary(
    merged: Merged, made: Prepared, trainer: Trainer | None, error: BaseException | None = None
) -> dict[str, Any]:
    """Return how the run ended, where it stands, and what it was warned of from its beginning."""
    stands = trainer.summary() if trainer is not None else {}
    state = next((word for kind, word in STATES if isinstance(error, kind)), "failed")
    return {
        "state": FINISHED if error is None else state,
        **({} if error is None else {"reason": str(error) or type(error).__name__}),
        "algorithm": merged.algorithm,
        "checkpoint": str(merged.config.pretrained_checkpoint.restore_from_path),
        **stands,
        "warnings": [*merged.warnings, *made.warnings, *stands.get("warnings", [])],
    }


def _record_early_end(records: RunDirectory, summary: dict[str, Any]) -> None:
    """Leave a summary behind; a full disk must not hide why the run ends."""
    with suppress(ResourceError):
        records.finish(summary)
