"""The loop's books, over a real learner on one rank."""

import os
import signal

import pytest

from nemoalign.data.sampler import GlobalSampler
from nemoalign.errors import DivergedError, Stopped
from nemoalign.log import PlainReporter
from nemoalign.model.lora import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.checkpointing import Checkpointer, Contents, find_last
from nemoalign.train.feed import Feed
from nemoalign.train.loop import LoopSettings, Trainer
from nemoalign.train.records import RunDirectory
from nemoalign.train.schedule import Schedule
from tests.commands.tiny import read_metrics
from tests.train import bench

SETUP = bench.Setup(ParallelLayout(1), lora=LoraSettings(adapter_dim=2))


class Rows:
    """Eight different rows, already collated."""

    def __init__(self) -> None:
        self.made = bench.batches(8, rows=1)

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index):
        return self.made[index]


def _trainer(directory, learner, *, lr=1e-2, **limits) -> Trainer:
    records = RunDirectory(directory)
    records.open()
    rows = Rows()
    shuffled = GlobalSampler(len(rows), 2, seed=3)
    in_order = GlobalSampler(len(rows), 2, shuffle=False, drop_last=False)
    settings = LoopSettings(
        **{
            "max_steps": 6,
            "steps_per_epoch": 4,
            "global_batch_size": 2,
            "val_every": 2,
            "save_every": 0,
            "max_seconds": None,
            "schedule": Schedule("constant", lr, 0.0, 0, 0, 6),
            **limits,
        }
    )
    return Trainer(
        learner,
        settings,
        feeds=tuple(
            Feed(rows, order, lambda one: one[0], 0, 1, 1) for order in (shuffled, in_order)
        ),
        checkpointer=Checkpointer(
            directory / "checkpoints",
            learner,
            Contents("a: 1\n", {}, adapters_only=True),
            monitor="val_loss",
            keep_top=1,
        ),
        records=records,
        reporter=PlainReporter(quiet=True),
    )


def test_steps_count_from_one_validation_frames_them_and_the_end_is_saved(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        summary = _trainer(tmp_path, learner).fit()
    train, val = read_metrics(tmp_path), read_metrics(tmp_path, "val")
    assert [entry["step"] for entry in train] == [1, 2, 3, 4, 5, 6]
    assert [entry["consumed_samples"] for entry in train] == [2, 4, 6, 8, 10, 12]
    assert [entry["epoch"] for entry in train] == [0, 0, 0, 0, 1, 1]
    assert [entry["step"] for entry in val] == [0, 2, 4, 6]
    assert val[-1]["val_loss"] < val[0]["val_loss"]
    assert summary["val_loss"] == val[-1]["val_loss"]
    assert summary["steps"] == 6
    assert find_last(tmp_path / "checkpoints") is not None


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        _trainer(tmp_path / "straight", learner).fit()
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path / "stopped", learner)
        real_step, calls = learner.step, []

        def step_and_signal(*arguments):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return real_step(*arguments)

        learner.step = step_and_signal
        with pytest.raises(Stopped, match="after step 3 of 6"):
            trainer.fit()
        trainer.records.close()
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path / "stopped", learner)
        trainer.restore(find_last(tmp_path / "stopped/checkpoints"))
        summary = trainer.fit()
    assert summary["resumed_at"] == 3
    straight, stopped = (read_metrics(tmp_path / name) for name in ("straight", "stopped"))
    assert [(e["step"], e["loss"]) for e in stopped] == [(e["step"], e["loss"]) for e in straight]
    val = [read_metrics(tmp_path / name, "val")[-1] for name in ("straight", "stopped")]
    assert val[0] == val[1]


def test_the_time_limit_saves_and_stops(tmp_path) -> None:
    with bench.learner(SETUP) as learner, pytest.raises(Stopped):
        _trainer(tmp_path, learner, max_seconds=0).fit()
    assert len(read_metrics(tmp_path)) == 1
    assert find_last(tmp_path / "checkpoints") is not None


def test_a_diverged_run_says_so_and_keeps_no_broken_checkpoint(tmp_path) -> None:
    with bench.learner(SETUP) as learner, pytest.raises(DivergedError, match="--lr"):
        _trainer(tmp_path, learner, lr=1e30).fit()
    assert find_last(tmp_path / "checkpoints") is None


def test_no_steps_means_only_validation(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        summary = _trainer(tmp_path, learner, max_steps=0).fit()
    assert [entry["step"] for entry in read_metrics(tmp_path, "val")] == [0]
    assert "val_loss" in summary
    assert find_last(tmp_path / "checkpoints") is None
