"""One process that calls a function: what it is asked, what it says, and how it ends."""

import datetime
import time

import numpy as np
import pytest

from nemoalign.config.values import RewardSource
from nemoalign.rollouts import function_process
from nemoalign.rollouts.function_process import FunctionProcess, listen
from tests.rollouts.processes import is_running, own_module, wait_for, wait_until_gone


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Start processes that call a function of ``rewards.py``; they are ended after the test."""
    monkeypatch.chdir(own_module(tmp_path))
    processes = []

    def start(function, seconds=20.0, module="rewards"):
        processes.append(FunctionProcess(RewardSource.parse(f"{module}:{function}"), seconds))
        return processes[-1]

    yield start
    for process in processes:
        process.end()


def introduced(process):
    process.about = said(process)
    assert not process.about["batched"]
    return process


def said(process):
    heard = []
    while not heard:
        heard = listen([process])
    return heard[0][1]


def test_it_introduces_the_function_and_answers(started):
    process = started("length")
    assert not process.is_free
    introduced(process)
    assert process.is_free
    assert process.about["file"].endswith("/rewards.py")
    process.ask(range(2), [("p", "four", {}), ("p", "", {})])
    assert not process.is_free
    assert said(process) == [4.0, 0.0]


def test_whatever_stands_in_a_row_arrives_as_json_holds_it(started):
    process = introduced(started("echo"))
    text = "größer \ud800 \0 \n 🙂" * 100_000  # more than any pipe holds at once
    fields = {
        "number": np.int64(3),
        "text": text,
        "array": np.zeros((2, 2)),
        "day": datetime.date(2025, 1, 1),
        "bytes": b"\xff",
        "nothing": float("nan"),
    }
    process.ask(range(1), [(text, text, fields)])
    assert said(process) == [1.0]


@pytest.mark.parametrize(
    ("how", "kind", "has_line"),
    [
        ("exit", "ended its process with exit code 3", False),
        ("segfault", "crashed (SIGSEGV)", True),
        ("kill", "was killed (SIGKILL), most likely because the machine ran out of memory,", False),
        ("sleep", "took longer than 0.3 s", True),
        ("regex", "took longer than 0.3 s", True),
        ("close", "", False),
    ],
)
def test_how_it_ended_is_known(started, how, kind, has_line):
    process = introduced(started("crash_how", seconds=0.3 if how in ("sleep", "regex") else 20))
    process.ask(range(1), [("p", how, {})])
    assert said(process) is None
    failure = process.post_mortem()
    assert failure["kind"].startswith(kind)
    assert failure["where"].startswith("rewards.py:") == has_line
    assert not process.is_alive


def test_one_that_does_not_even_end_itself_is_ended(started, monkeypatch):
    monkeypatch.setattr(function_process, "GRACE_SECONDS", -19.5)
    process = introduced(started("crash_how"))
    process.ask(range(1), [("p", "sleep", {})])
    before = time.monotonic()
    assert said(process) is None
    assert time.monotonic() - before < 3
    assert process.is_alive
    assert process.post_mortem() == {"kind": "took longer than 20 s", "message": "", "where": ""}
    assert not process.is_alive


def test_an_import_that_never_ends_is_ended(started, monkeypatch, tmp_path):
    monkeypatch.setattr(function_process, "START_SECONDS", 0.3)
    (tmp_path / "waits.py").write_text("import time\ntime.sleep(60)")
    process = started("f", module="waits")
    assert said(process) is None
    assert process.post_mortem()["kind"] == "took longer than 0.3 s"


def test_what_a_function_started_ends_with_it(started, tmp_path):
    process = introduced(started("tell"))
    process.ask(range(1), [("p", "60", {"file": str(tmp_path / "told")})])
    told = wait_for(tmp_path / "told")
    assert is_running(told["child"])
    process.end()
    assert not is_running(told["pid"])
    wait_until_gone(told["child"])
