"""The books of a run on one rank: speed and memory beside each step, warnings everywhere they belong."""

import json

import pytest

from nemoalign.errors import ResourceError
from nemoalign.log import PlainReporter
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.books import Books
from nemoalign.train.progress import Progress
from nemoalign.train.records import RunDirectory
from nemoalign.train.schedule import LoopSettings, Schedule


@pytest.fixture
def books(tmp_path):
    records = RunDirectory(tmp_path)
    records.open()
    with start(ParallelLayout(1), seed=1):
        yield Books(records, PlainReporter(quiet=True))
    records.close()


def limits(steps_per_epoch: int) -> LoopSettings:
    return LoopSettings(
        max_steps=99,
        steps_per_epoch=steps_per_epoch,
        global_batch_size=8,
        val_every=0,
        save_every=0,
        max_seconds=None,
        schedule=Schedule("constant", 1.0, 0.0, 0, 0, 99),
    )


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_step_is_logged_with_its_speed_and_its_memory(books, tmp_path) -> None:
    books.pace.take([0.5, 1.25])
    shown = books.log_step({"split": "train", "step": 1, "loss": 2.0}, tokens=300, seconds=2.0)
    assert shown == {"tokens/s": 150, "GiB": 1.25}
    assert lines(tmp_path / "metrics.jsonl") == [
        {"split": "train", "step": 1, "loss": 2.0, "tokens_per_second": 150.0, "memory_gib": 1.25}
    ]


def test_the_summary_counts_the_speed_of_this_process_and_the_tokens_of_all(books) -> None:
    books.go_on_from(Progress(step=10, tokens=1000.0))
    books.log_step({"split": "train", "step": 11, "loss": 2.0}, tokens=300, seconds=2.0)
    progress = Progress(
        step=11, tokens=1300.0, consumed_samples=88, skipped=1, monitored=[3.0, 2.5]
    )
    progress.best_step, progress.val_metrics = 11, {"val_loss": 2.5}
    summary = books.summary(progress, limits(20))
    expected = {
        "steps": 11, "resumed_at": 10, "epochs": 0.55, "consumed_samples": 88, "tokens": 1300,
        "tokens_per_second": 150.0, "skipped_steps": 1, "val_loss": 2.5, "warnings": [],
        "best": {"val_loss": 2.5, "step": 11},
    }  # fmt: skip
    assert {name: summary[name] for name in expected} == expected


def test_a_warning_is_said_kept_and_written(books, tmp_path, capsys) -> None:
    books.warn(7, "the loss jumped")
    assert capsys.readouterr().err == "warning: the loss jumped\n"
    assert books.summary(Progress(), limits(1))["warnings"] == ["step 7: the loss jumped"]
    assert lines(tmp_path / "warnings.jsonl") == [{"step": 7, "warning": "the loss jumped"}]


def test_rollouts_are_written_down_and_a_full_disk_is_told_when_ranks_agree(
    books, tmp_path
) -> None:
    books.keep_rollouts(2, [{"prompt": "a", "response": "b", "reward": 0.5}])
    assert lines(tmp_path / "rollouts.jsonl") == [
        {"step": 2, "prompt": "a", "response": "b", "reward": 0.5}
    ]
    assert not books.attempt.has_failed
    (tmp_path / "rollouts.jsonl").unlink()
    (tmp_path / "rollouts.jsonl").mkdir()
    books.keep_rollouts(3, [{"prompt": "a"}])
    with pytest.raises(ResourceError, match=r"rollouts\.jsonl could not be written"):
        books.attempt.agree()


def test_a_trouble_of_the_records_is_a_warning(books, tmp_path, capsys) -> None:
    (tmp_path / "report.html").mkdir()
    books.note_saved(3)
    assert "report.html could not be written" in capsys.readouterr().err
