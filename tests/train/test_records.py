import json
import os
import subprocess
import time

import pytest

from nemoalign.errors import ConflictError
from nemoalign.train.records import RunDirectory, finished_summary


def test_metrics_keep_every_digit_and_are_appended(tmp_path) -> None:
    for step, value in enumerate([0.1 + 0.2, 1 / 3]):
        records = RunDirectory(tmp_path / "run")
        records.open()
        records.log({"step": step, "loss": value})
        records.close()
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.1 + 0.2, 1 / 3]


def test_a_directory_has_one_writer(tmp_path) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    first.open()
    with pytest.raises(ConflictError, match="being written by another"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_summary_says_that_the_run_is_finished(tmp_path) -> None:
    assert finished_summary(tmp_path) is None
    summary = {"state": "finished", "steps": 3}
    RunDirectory(tmp_path).finish(summary)
    assert finished_summary(tmp_path) == summary
    assert {p.name for p in tmp_path.iterdir()} == {"summary.json", "report.html"}


@pytest.mark.parametrize("state", ["stopped", "interrupted", "diverged", "failed"])
def test_the_summary_of_a_run_that_stopped_does_not_say_that_it_is_complete(
    tmp_path, state
) -> None:
    RunDirectory(tmp_path).finish({"state": state, "steps": 3})
    assert finished_summary(tmp_path) is None


def test_a_summary_from_before_there_was_a_state_says_that_the_run_is_complete(tmp_path) -> None:
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    assert finished_summary(tmp_path) == {"steps": 3}


def test_a_run_that_goes_on_takes_the_words_of_its_earlier_end_back(tmp_path) -> None:
    records = RunDirectory(tmp_path)
    records.finish({"state": "stopped"})
    records.open()
    records.close()
    assert not (tmp_path / "summary.json").exists()


def test_command_file_repeats_the_command_with_awkward_arguments(tmp_path) -> None:
    records = RunDirectory(tmp_path)
    records.describe("a: 1\n", ["printf", "%s|", "it's", "a b", "$HOME"])
    out = subprocess.run([tmp_path / "command.sh"], capture_output=True, text=True, check=True)
    assert out.stdout == "it's|a b|$HOME|"
    assert os.access(tmp_path / "command.sh", os.X_OK)
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"


def test_half_a_line_that_a_full_disk_left_does_not_spoil_the_next(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    records = RunDirectory(tmp_path)
    records.open()
    records.log({"step": 2})
    records.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_report_is_drawn_at_validation_but_never_takes_much_of_the_time(
    tmp_path, monkeypatch
) -> None:
    records = RunDirectory(tmp_path)
    records.open()
    report = tmp_path / "report.html"
    # Drawing takes a second, from 0 to 1; it is asked for again at 50 and at 52.
    clock = iter([0.0, 1.0, 50.0, 52.0, 53.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    records.log({"split": "train", "step": 1, "loss": 3.0})
    assert not report.exists()
    records.log({"split": "val", "step": 1, "val_loss": 2.5})
    assert "2.5" in report.read_text()
    report.unlink()
    records.draw()
    assert not report.exists()
    records.draw()
    assert report.exists()
    records.close()


def test_a_report_that_cannot_be_written_is_a_trouble_said_once_and_ends_nothing(tmp_path) -> None:
    records = RunDirectory(tmp_path)
    records.open()
    (tmp_path / "report.html").mkdir()
    for step in (1, 2):
        records.log({"split": "val", "step": step, "val_loss": 2.5})
    (trouble,) = records.troubles()
    assert trouble.startswith("report.html could not be written: ")
    assert records.troubles() == []
    records.close()


def test_rollouts_of_steps_that_are_made_again_are_kept_once(tmp_path) -> None:
    def sampled(*steps):
        records = RunDirectory(tmp_path)
        for step, text in steps:
            records.keep_rollouts(step, [{"response": text}, {"response": "b"}])
        lines = (tmp_path / "rollouts.jsonl").read_text().splitlines()
        return [(row["step"], row["response"]) for row in map(json.loads, lines)]

    sampled((1, "a"), (2, "killed"), (3, "killed"))
    with (tmp_path / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 3, "resp')
    assert sampled((2, "again"), (3, "on")) == [
        (1, "a"), (1, "b"), (2, "again"), (2, "b"), (3, "on"), (3, "b"),
    ]  # fmt: skip


def test_warnings_are_kept_for_the_report(tmp_path) -> None:
    records = RunDirectory(tmp_path)
    records.warn(3, "the loss jumped")
    records.finish({"state": "stopped", "reason": "as asked"})
    page = (tmp_path / "report.html").read_text()
    assert "step 3: the loss jumped" in page
    assert "as asked" in page
