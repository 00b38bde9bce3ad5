"""The loop's books, over a real learner on one rank."""

import math
import os
import signal
import time
from dataclasses import replace

import pytest

from nemoalign.data.sampler import GlobalSampler
from nemoalign.errors import DivergedError, Interrupted, Stopped
from nemoalign.log import PlainReporter
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train import pace
from nemoalign.train.checkpointing import Checkpointer, Contents
from nemoalign.train.feed import Feed, Feeds
from nemoalign.train.loop import Trainer
from nemoalign.train.records import RunDirectory
from nemoalign.train.rotation import Rotation, find_last
from nemoalign.train.schedule import LoopSettings, Schedule
from tests.commands.tiny import read_metrics
from tests.train import bench

SETUP = bench.Setup(ParallelLayout(1), lora=LoraSettings(adapter_dim=2))


class Rows:
    """Eight different rows, already collated."""

    def __init__(self) -> None:
        self.made = bench.batches(8, rows=1)

    def of_batch(self, batch):
        return self.__getitem__

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index):
        return self.made[index]

    def place(self, index) -> str:
        return f"row {index}"


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
        feeds=Feeds(
            *(Feed(rows, order, lambda one: one[0], 0, 1, 1) for order in (shuffled, in_order))
        ),
        checkpointer=Checkpointer(
            Rotation(directory / "checkpoints", monitor="val_loss", keep_top=1),
            learner,
            Contents("a: 1\n", {}, adapters_only=True),
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


@pytest.mark.parametrize("at_step", [3, 4], ids=["between validations", "before a validation"])
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path, at_step) -> None:
    with bench.learner(SETUP) as learner:
        _trainer(tmp_path / "straight", learner).fit()
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path / "stopped", learner)
        signalling(learner, at_step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match=f"after step {at_step} of 6"):
            trainer.fit()
        trainer.records.close()
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path / "stopped", learner)
        trainer.restore(find_last(tmp_path / "stopped/checkpoints"))
        summary = trainer.fit()
    assert summary["resumed_at"] == at_step
    straight, stopped = (read_metrics(tmp_path / name) for name in ("straight", "stopped"))
    assert [(e["step"], e["loss"]) for e in stopped] == [(e["step"], e["loss"]) for e in straight]
    straight, stopped = (read_metrics(tmp_path / name, "val") for name in ("straight", "stopped"))
    assert stopped == straight


def test_the_time_limit_saves_and_stops(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path, learner, max_seconds=0)
        trainer.validation = None
        with pytest.raises(Stopped, match="after step 1 of 6; everything is saved"):
            trainer.fit()
    assert len(read_metrics(tmp_path)) == 1
    assert find_last(tmp_path / "checkpoints") is not None


def test_a_stop_during_the_first_validation_has_nothing_to_save(tmp_path) -> None:
    with bench.learner(SETUP) as learner, pytest.raises(Stopped, match="before step 1"):
        _trainer(tmp_path, learner, max_seconds=0).fit()
    assert read_metrics(tmp_path, "val") == []
    assert find_last(tmp_path / "checkpoints") is None


def signalling(learner, at_step, action):
    """Make the learner's step call ``action`` once, before it works."""
    real_step, calls = learner.step, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == at_step:
            action()
        return real_step(*arguments)

    learner.step = step


def test_ctrl_c_saves_and_says_that_it_was_ctrl_c(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        signalling(learner, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted, match="after step 2 of 6") as end:
            _trainer(tmp_path, learner).fit()
    assert end.value.exit_code == 130
    assert find_last(tmp_path / "checkpoints").name.endswith(
        "step=2-consumed_samples=4.0-epoch=0-last.ckpt"
    )


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_wish_to_save_is_heard_and_the_run_goes_on(tmp_path, how) -> None:
    def wish():
        if how == "file":
            (tmp_path / "SAVE").touch()
        else:
            os.kill(os.getpid(), signal.SIGUSR2)

    with bench.learner(SETUP) as learner:
        signalling(learner, 3, wish)
        trainer = _trainer(tmp_path, learner)
        saved = []
        real_save = trainer.checkpointer.save
        trainer.checkpointer.save = lambda progress, **how: (
            saved.append(progress.step) or real_save(progress, **how)
        )
        assert trainer.fit()["steps"] == 6
    assert saved == [3, 6]
    assert not (tmp_path / "SAVE").exists()


def test_a_diverged_run_says_so_and_keeps_no_broken_checkpoint(tmp_path) -> None:
    with bench.learner(SETUP) as learner, pytest.raises(DivergedError, match="--lr"):
        _trainer(tmp_path, learner, lr=1e30).fit()
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert find_last(tmp_path / "checkpoints") is None


def test_a_row_that_breaks_the_loss_is_named_skipped_and_counted(tmp_path, capsys) -> None:
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path, learner)
        trainer.train.rows.made[5].loss_mask.fill_(math.nan)
        real_loss = learner.algorithm.loss

        def loss(output, batch):
            return real_loss(
                output * batch.loss_mask.nan_to_num(1.0) / batch.loss_mask.mean().isfinite(), batch
            )

        learner.algorithm.loss = loss
        before = [p.clone() for p in learner.modules[0].parameters()]
        summary = trainer.fit()
    broken = [entry["step"] for entry in read_metrics(tmp_path) if not math.isfinite(entry["loss"])]
    assert len(broken) == summary["skipped_steps"] >= 1
    assert summary["steps"] == 6
    assert all(p.isfinite().all() for p in learner.modules[0].parameters())
    assert any((p != b).any() for p, b in zip(learner.modules[0].parameters(), before, strict=True))
    assert f"step {broken[0]} was not applied: the loss is nan in row 5" in capsys.readouterr().err


def test_a_run_that_no_longer_improves_ends_early_and_saved(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path, learner, lr=0.0, patience=2, max_steps=40)
        summary = trainer.fit()
    assert summary["steps"] == 4
    assert [entry["step"] for entry in read_metrics(tmp_path, "val")] == [0, 2, 4]
    assert find_last(tmp_path / "checkpoints") is not None


@pytest.mark.dist
def test_every_rank_knows_which_one_the_others_wait_for(two_ranks, tmp_path) -> None:
    first, second = two_ranks.run(_train_with_a_slow_rank, tmp_path)
    assert (first["ranks"], first["warnings"]) == (second["ranks"], second["warnings"])
    assert [row["rank"] for row in first["ranks"]] == [0, 1]
    assert [row["times_median"] > 1.3 for row in first["ranks"]] == [False, True]
    assert first["ranks"][1]["seconds_per_step"] > 0.2 > first["ranks"][0]["seconds_per_step"]
    assert first["peak_memory_gib"] == max(row["peak_memory_gib"] for row in first["ranks"])
    assert len(first["warnings"]) == 1
    assert first["warnings"][0].startswith("step 2: rank 1 on ")


def _train_with_a_slow_rank(directory) -> dict:
    """Runs on each rank: two replicas, the second of which takes 0.2 s more for each micro-batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "WINDOW", 2)
        return _summary_with_a_slow_rank(directory)


def _summary_with_a_slow_rank(directory) -> dict:
    setup = bench.Setup(ParallelLayout(2), lora=LoraSettings(adapter_dim=2))
    with bench.learner(setup) as learner:
        rank = int(os.environ["RANK"])
        trainer = _trainer(directory / str(rank), learner, max_steps=2)
        trainer.train, trainer.validation = replace(trainer.train, dp_rank=rank, dp_size=2), None
        real = learner.algorithm.forward
        learner.algorithm.forward = lambda *given: time.sleep(0.2 * rank) or real(*given)
        trainer.checkpointer.save = lambda progress, **how: None
        return trainer.fit()


def test_no_steps_means_only_validation(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        summary = _trainer(tmp_path, learner, max_steps=0).fit()
    assert [entry["step"] for entry in read_metrics(tmp_path, "val")] == [0]
    assert "val_loss" in summary
    assert find_last(tmp_path / "checkpoints") is None
