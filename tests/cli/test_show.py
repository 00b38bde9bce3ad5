"""One voice: JSON, tables, talk on stderr, bars on a terminal and lines elsewhere."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from nemoalign.cli import show
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run


def test_a_result_is_names_and_values_or_one_json_document(capsys):
    value = {
        "steps": 3,
        "val_loss": 1.23456789,
        "layout": {"tp": 1},
        "files": [Path("a")],
        "x": None,
    }
    show.result(value, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "steps     3",
        "val loss  1.2346",
        "layout",
        "  tp  1",
        "files",
        "  a",
        "x         none",
    ]
    show.result(value, as_json=True)
    assert json.loads(capsys.readouterr().out) == {**value, "files": ["a"]}


def test_columns_are_aligned(capsys):
    show.columns([("embedding", "4 x 2"), ("b", "1")], ("name", "shape"))
    assert capsys.readouterr().out == "name       shape\nembedding  4 x 2\nb          1\n"


def test_the_config_shows_a_source_beside_every_value(capsys):
    merged = merge_run("sft", Said(flags={"model.optim.lr": "3e-4"}, environ={}))
    show.config(merged, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lr:", "0.0003", "#", "flag", "--lr"] in lines
    assert ["global_batch_size:", "64", "#", "default"] in lines
    assert ["optim:"] in lines
    show.config(merged, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["model"]["optim"]["lr"] == 3e-4
    assert document["sources"]["model.optim.lr"] == "flag --lr"


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (999, "bytes", "999 bytes"),
        (1500, "bytes", "1.5 KB"),
        (2.5e9, "bytes", "2.5 GB"),
        (6.8e14, "bytes", "680.0 TB"),
        (1234, "steps", "1,234 steps"),
    ],
)
def test_amounts_read_well(value, unit, words):
    assert show.amount_of(value, unit) == words


def test_without_a_terminal_a_long_piece_of_work_speaks_in_lines(capsys, monkeypatch):
    monkeypatch.setattr(show, "LINE_SECONDS", 0.0)
    reporter = show.make_reporter()
    with reporter.progress("Writing m.nemo", 4e9, "bytes") as bar:
        bar.advance(1e9)
    with reporter.progress("training", 10, "steps") as bar:
        bar.advance(1, loss=2.0)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Writing m.nemo: 25% of 4.0 GB, ")
    assert "training" not in said.err


def test_quiet_keeps_only_warnings(capsys):
    reporter = show.make_reporter(quiet=True)
    reporter.say("talk")
    reporter.warn("look here")
    reporter.metrics({"loss": 1.0})
    assert capsys.readouterr().err == "warning: look here\n"


def test_only_rank_0_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    reporter = show.make_reporter()
    reporter.say("talk")
    reporter.warn("look here")
    assert capsys.readouterr().err == ""


def test_a_failure_names_its_rank_when_it_has_one(capsys, monkeypatch):
    show.failure("it broke.", is_error=True)
    monkeypatch.setenv("RANK", "3")
    show.failure("stopped and saved.", is_error=False)
    assert capsys.readouterr().err == "error: it broke.\n[rank 3] stopped and saved.\n"


def terminal_reporter(**options) -> tuple[show.TerminalReporter, io.StringIO]:
    """Return the reporter of a terminal, and what it draws on."""
    drawn = io.StringIO()
    reporter = show.TerminalReporter()
    reporter.console = Console(
        file=drawn, force_terminal=True, width=120, highlight=False, **options
    )
    return reporter, drawn


def test_a_narrow_terminal_shows_everything_a_step_reports_of_a_run_that_goes_on():
    reporter, drawn = terminal_reporter(color_system=None)
    reporter.console.width = 80
    with reporter.progress("training", 2000, "steps", 900) as bar:
        bar.advance(1, loss=2.34567, lr=1e-5, **{"tokens/s": 1432, "GiB": "1.27"})
    assert "901 of 2,000 steps" in drawn.getvalue()
    assert "loss 2.3457  lr 1e-05  tokens/s 1432  GiB 1.27" in drawn.getvalue()


def test_a_terminal_gets_a_bar_with_amounts_and_the_latest_fields():
    reporter, drawn = terminal_reporter(color_system=None)
    with reporter.progress("training [x]", 4, "steps") as bar:
        bar.advance(1, loss=2.34567, lr=1e-5)
        reporter.say("said [above] it")
    assert "1 of 4 steps" in drawn.getvalue()
    assert "loss 2.3457  lr 1e-05" in drawn.getvalue()
    assert "said [above] it" in drawn.getvalue()


def test_a_terminal_prints_validation_lines_and_leaves_train_steps_to_the_bar():
    reporter, drawn = terminal_reporter(color_system=None)
    reporter.metrics({"split": "train", "step": 1, "loss": 2.0})
    assert drawn.getvalue() == ""
    reporter.metrics({"split": "val", "step": 1, "val_loss": 2.0})
    assert "val_loss 2" in drawn.getvalue()


@pytest.mark.parametrize(("no_color", "coloured"), [(False, True), (True, False)])
def test_warnings_are_yellow_unless_no_color(no_color, coloured):
    reporter, drawn = terminal_reporter(color_system="standard", no_color=no_color)
    reporter.warn("look [here]")
    assert ("\x1b[33m" in drawn.getvalue()) is coloured
    assert "look [here]" in drawn.getvalue()


def test_a_sample_is_coloured_by_what_happens_to_its_text_or_bracketed():
    parts = [("masked", "Q "), ("trained", "yes"), ("truncated", "[/b] no")]
    reporter, drawn = terminal_reporter(color_system="standard", no_color=False)
    reporter.sample(parts)
    assert drawn.getvalue() == "\x1b[2mQ \x1b[0m\x1b[32myes\x1b[0m\x1b[9;31m[/b] no\x1b[0m\n"
    reporter, drawn = terminal_reporter(color_system="standard", no_color=True)
    reporter.sample(parts)
    assert drawn.getvalue() == "Q ⟦yes⟧⟨[/b] no⟩\n"


def test_writing_to_a_closed_pipe_is_silent(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        show.emit("nobody reads this")
        show.emit("nor this")
