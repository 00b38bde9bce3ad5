"""TensorBoard read back by its own reader; what is asked for and missing, said before anything is computed."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.config.trainer import ExpManager, WandbLogger
from nemoalign.errors import ConfigError, ResourceError
from nemoalign.train.records import RunDirectory
from nemoalign.train.sinks import check_packages, named, open_sinks


def test_splits_share_a_picture_and_steps_are_no_metric() -> None:
    assert named({"split": "val", "step": 3, "val_loss": 2.0}) == {"val/loss": 2.0}
    assert named({"split": "train", "step": 3, "loss": 2.0, "lr": 1.0}) == {
        "train/loss": 2.0, "train/lr": 1.0,
    }  # fmt: skip


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, tmp_path) -> None:
    check_packages(ExpManager())
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    wanted = ExpManager(create_wandb_logger=True, wandb_logger_kwargs=WandbLogger(project="p"))
    with pytest.raises(ResourceError, match=r"pip install 'nemoalign\[wandb\]'"):
        check_packages(wanted)


def test_flags_and_nemos_keys_mean_the_same() -> None:
    typed = merge_run(
        "sft", Said(flags={"exp_manager.wandb_logger_kwargs.project": "p"}, environ={})
    )
    given = merge_run(
        "sft",
        Said(
            sets=[
                "exp_manager.create_wandb_logger=true",
                "exp_manager.wandb_logger_kwargs.project=p",
            ],
            environ={},
        ),
    )
    assert typed.config == given.config
    assert typed.config.exp_manager.create_wandb_logger
    with pytest.raises(ConfigError, match="--wandb PROJECT"):
        merge_run("sft", Said(sets=["exp_manager.create_wandb_logger=true"], environ={}))


def run_to(directory, steps: range, resumed_at: int) -> None:
    merged = merge_run("sft", Said(flags={"exp_manager.create_tensorboard_logger": True}, environ={}))  # fmt: skip
    records = RunDirectory(directory)
    records.open()
    records.sinks = open_sinks(merged, directory, resumed_at)
    for step in steps:
        records.log({"split": "train", "step": step, "loss": 10.0 * resumed_at + step})
    records.log({"split": "val", "step": steps[-1], "val_loss": 0.5})
    records.finish({"state": "finished", "steps": steps[-1]})
    records.close()
    assert records.troubles() == []


def test_a_resumed_run_goes_on_in_tensorboard_without_what_a_kill_made_worthless(tmp_path) -> None:
    run_to(tmp_path, range(1, 5), 0)
    run_to(tmp_path, range(3, 6), 2)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [
        (1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 25.0),
    ]  # fmt: skip
    assert read.Scalars("val/loss")[-1].value == 0.5
    assert {"config/text_summary", "summary/text_summary"} <= set(read.Tags()["tensors"])


def test_a_sink_that_fails_is_dropped_and_said(tmp_path) -> None:
    class Broken:
        def log(self, values):
            raise OSError("no space")

    records = RunDirectory(tmp_path)
    records.open()
    records.sinks = [Broken()]
    for step in (1, 2):
        records.log({"split": "train", "step": step, "loss": 1.0})
    assert records.troubles() == ["Broken gets no more metrics: no space"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    records.close()
