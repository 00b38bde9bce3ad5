"""Rewards by functions of a person's own: in order, from several processes, whatever these do."""

import math
import os
import signal
import threading
import time

import pytest

from nemoalign.config.values import RewardSource
from nemoalign.errors import ConfigError
from nemoalign.rollouts import function_process
from nemoalign.rollouts.functions import Answer, RewardFunction
from tests.rollouts.processes import is_running, own_module, wait_for, wait_until_gone


@pytest.fixture
def function(tmp_path, monkeypatch):
    """Start functions of ``rewards.py``; they are closed after the test."""
    monkeypatch.chdir(own_module(tmp_path))
    started = []

    def start(name, workers=2, seconds=20.0):
        source = RewardSource.parse(f"rewards:{name}")
        started.append(RewardFunction(source, workers=workers, seconds=seconds))
        return started[-1]

    yield start
    for reward in started:
        reward.close()


def answers(*responses, **fields):
    return [Answer("p", text, fields, f"rows.jsonl:{i}") for i, text in enumerate(responses, 1)]


def test_rewards_keep_the_order_of_the_rows_over_processes_and_steps(function):
    slowly = function("slowly")
    lengths = [5, 1, 4, 2, 3, 0]
    rows = [("p", "x" * n, {"seconds": 0.02 * n}) for n in lengths]
    for _ in range(2):
        assert slowly.score(rows) == lengths
    assert slowly.score([]) == []
    assert slowly.failures == ()


def test_several_processes_work_at_once(function):
    slowly = function("slowly", workers=4)
    rows = answers("a", "b", "c", "d", seconds=0.5)
    slowly.score([row._replace(fields={"seconds": 0}) for row in rows] * 8)  # all have started
    before = time.monotonic()
    assert slowly.score(rows) == [1.0] * 4
    assert time.monotonic() - before < 1.9


def test_what_goes_wrong_costs_a_reward_and_is_told_once(function):
    bad = function("crash_how", seconds=1)
    rows = answers("ok", "exit", "sleep", "ok", "regex", "segfault", "kill", "exit", "ok")
    scores = bad.score(rows)
    assert [i for i, score in enumerate(scores) if score == 1] == [0, 3, 8]
    assert sum(map(math.isnan, scores)) == 6
    news = bad.news()
    told = ("exit code 3 for 2 of 9 answers; the first: rows.jsonl:2", "SIGSEGV", "SIGKILL")
    assert news[0] == f"rewards:crash_how ended its process with {told[0]}"
    assert news[1].startswith("rewards:crash_how took longer than 1 s (rewards.py:")
    assert news[1].endswith(") for 2 of 9 answers; the first: rows.jsonl:3")
    assert [failure.count for failure in bad.failures] == [2, 2, 1, 1]
    assert bad.news() == []
    assert bad.score(answers("exit", "ok"))[1] == 1.0
    assert (bad.news(), len(bad.failures)) == ([], 1)
    assert bad.score(answers("ok")) == [1.0]
    assert bad.failures == ()


def test_exceptions_are_told_with_their_line(function):
    slowly = function("slowly")
    rows = answers("a", "b", seconds="long")
    assert all(map(math.isnan, slowly.score([row[:3] for row in rows])))
    (news,) = slowly.news()
    assert "slowly raised TypeError: 'str' object cannot be " in news
    assert "(rewards.py:" in news
    assert news.endswith(" for 2 of 2 answers; the first: answer 1")


def test_a_batched_function_gets_a_share_for_each_process(function):
    ranked = function("rank_them")
    rows = [("p", "r", {"quality": q}) for q in (3, 1, 2, 9, 7)]
    assert ranked.score(rows) == [1.0, 0.0, 0.0, 2.0, 1.0]
    assert ranked.score(rows[:1]) == [0.0]
    assert all(map(math.isnan, ranked.score([("p", "raise", {})] * 2)))
    (failure,) = ranked.failures
    assert (failure.kind, failure.message, failure.count) == ("raised LookupError", "two", 2)
    short = [("p", "short", {"quality": 1})] * 4
    assert all(map(math.isnan, ranked.score(short)))
    assert "another length: 1 for 2 answers for 4 of 4" in ranked.news()[0]


def test_a_batch_may_take_the_time_of_all_its_answers(tmp_path, monkeypatch):
    (tmp_path / "waits.py").write_text(
        "import time\n"
        "def f(prompts, responses, rows):\n"
        "    time.sleep(0.7)\n"
        "    return [1] * len(rows)\n"
        "f.batched = True\n"
    )
    monkeypatch.chdir(tmp_path)
    with RewardFunction(RewardSource.parse("waits:f"), workers=1, seconds=0.4) as waits:
        assert waits.score([("p", "r", {})] * 4) == [1.0] * 4
        assert math.isnan(waits.score([("p", "r", {})])[0])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "absent:f",
            "--reward absent:f does not work: there is no module absent in .*type its path",
        ),
        ("rewards:f", r"rewards \(rewards.py\) has no f; its functions are length, slowly, "),
        ("dies.py:f", r"does not work: importing it ended its process with exit code 5.$"),
        ("crashes.py:f", r"importing it crashed \(SIGSEGV\) \(crashes.py:2\).$"),
        ("hangs.py:f", "importing it took longer than 1 s"),
    ],
)
def test_what_cannot_be_called_is_refused_at_the_start(tmp_path, monkeypatch, source, says):
    monkeypatch.chdir(own_module(tmp_path))
    (tmp_path / "dies.py").write_text("import os\nos._exit(5)")
    (tmp_path / "crashes.py").write_text("import ctypes\nctypes.string_at(0)")
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(60)")
    if "hangs" in source:
        monkeypatch.setattr(function_process, "START_SECONDS", 1.0)
    with pytest.raises(ConfigError, match=says):
        RewardFunction(RewardSource.parse(source), workers=2, seconds=1)


def test_one_that_cannot_be_started_again_costs_rewards_not_the_run(function, tmp_path):
    bad = function("crash_how", workers=1)
    file = tmp_path / "rewards.py"
    code = file.read_text()
    file.write_text("1 / 0")
    scores = bad.score(answers("ok", "exit", "ok"))
    assert scores[0] == 1
    assert all(map(math.isnan, scores[1:]))
    told = (
        "could not be started again: importing rewards raised ZeroDivisionError: division by zero"
    )
    assert told in bad.news()[1]
    file.write_text(code)
    assert bad.score(answers("ok", "ok")) == [1.0, 1.0]


def test_one_that_died_between_two_steps_costs_nothing(function, tmp_path):
    tell = function("tell", workers=1)
    row = ("p", "0", {"file": str(tmp_path / "told")})
    assert tell.score([row]) == [1.0]
    pid = wait_for(tmp_path / "told")["pid"]
    os.kill(pid, 9)
    # Not only gone: its threads too, so that the system counts its end.
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.01)
    assert tell.score([row]) == [1.0]
    assert tell.failures == ()


def test_an_interrupted_step_leaves_nothing_behind(function):
    slowly = function("slowly")
    # A shell that starts the tests in the background lets them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        slowly.score(answers("long", "longer", seconds=15))
    signal.signal(signal.SIGINT, before)
    assert slowly.score(answers("a", "bc", seconds=0)) == [1.0, 2.0]


def test_closing_ends_the_processes(function, tmp_path):
    tell = function("tell", workers=1)
    tell.score([("p", "0", {"file": str(tmp_path / "told")})])
    told = wait_for(tmp_path / "told")
    assert is_running(told["pid"])
    tell.close()
    tell.close()
    wait_until_gone(told["pid"], told["child"])
