"""Starting ranks: what they are told, who wins when one fails, and that none outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemoalign.launch.ranks import start_ranks
from nemoalign.launch.reports import RankFailure
from nemoalign.train.stopping import SAME_SECONDS

HEAD = """
import json, os, signal, sys, time
from pathlib import Path
from nemoalign.launch.lifeline import follow_parent
from nemoalign.launch.reports import report_failure
follow_parent(os.environ)
rank = int(os.environ["RANK"])
folder = Path(sys.argv[1])
def fail(message, code):
    report_failure(message, code, "DataError", "the traceback", os.environ)
    sys.exit(code)
(folder / f"started{rank}").write_text(str(os.getpid()))
while len(list(folder.glob("started*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)
"""


@pytest.fixture
def ranks(tmp_path):
    """Return a function that runs two ranks of a script body to their end."""

    def start(body: str) -> None:
        script = tmp_path / "rank.py"
        script.write_text(HEAD + body)
        start_ranks([sys.executable, str(script), str(tmp_path)], 2, dict(os.environ), threads=3)

    return start


def failure_of(start, body: str) -> RankFailure:
    began = time.monotonic()
    with pytest.raises(RankFailure) as failure:
        start(body)
    assert time.monotonic() - began < 10
    return failure.value


def test_every_rank_is_told_who_it_is_and_only_rank_0_writes_to_stdout(
    ranks, tmp_path, capfd, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ranks("""
print("output of", rank)
(folder / f"env{rank}.json").write_text(json.dumps(dict(os.environ)))
""")
    assert capfd.readouterr().out == "output of 0\n"
    told = [json.loads((tmp_path / f"env{rank}.json").read_text()) for rank in (0, 1)]
    for rank, environ in enumerate(told):
        assert environ["RANK"] == environ["LOCAL_RANK"] == str(rank)
        assert environ["WORLD_SIZE"] == environ["LOCAL_WORLD_SIZE"] == "2"
        assert environ["MASTER_ADDR"] == "127.0.0.1"
        assert environ["OMP_NUM_THREADS"] == "3"
    assert told[0]["MASTER_PORT"] == told[1]["MASTER_PORT"]


def test_the_first_rank_that_fails_ends_the_others_and_its_words_win(ranks, tmp_path):
    failure = failure_of(ranks, 'fail("train.jsonl line 3 is bad.", 8) if rank else time.sleep(60)')
    assert (str(failure), failure.exit_code) == ("train.jsonl line 3 is bad.", 8)
    assert (failure.kind, failure.detail) == ("DataError", "the traceback")
    assert not any(alive(tmp_path, rank) for rank in (0, 1))


def alive(folder: Path, rank: int) -> bool:
    """True while the process of a rank runs; a zombie has ended."""
    stat = Path(f"/proc/{(folder / f'started{rank}').read_text()}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_named_error_wins_over_the_bug_it_causes_elsewhere(ranks):
    body = """
if rank == 0:
    fail("This is a bug: connection closed by peer", 1)
time.sleep(0.3)
fail("rank 1 has no memory left.", 7)
"""
    failure = failure_of(ranks, body)
    assert (str(failure), failure.exit_code) == ("rank 1 has no memory left.", 7)


def test_a_rank_that_was_killed_wins_over_the_bug_it_causes_elsewhere(ranks):
    body = """
if rank:
    os.kill(os.getpid(), signal.SIGKILL)
fail("This is a bug: connection reset by peer", 1)
"""
    failure = failure_of(ranks, body)
    assert "rank 1 was killed (SIGKILL)" in str(failure)
    assert failure.exit_code == 7


@pytest.mark.parametrize(
    ("end", "says", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 was killed (SIGKILL)", 7),
        ("os._exit(3)", "rank 1 ended with exit code 3.", 3),
        ("fail('a bug', 1)", "a bug", 1),
    ],
)
def test_a_rank_that_ends_wins_over_those_that_miss_it(ranks, end, says, code):
    body = f"""
if rank:
    {end}
report_failure("Rank 1 went away.", 7, "LostRankError", "", os.environ)
sys.exit(7)
"""
    failure = failure_of(ranks, body)
    assert says in str(failure)
    assert failure.exit_code == code


def test_what_a_rank_says_when_it_is_told_to_end_is_not_the_reason(ranks):
    body = """
if rank:
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, lambda *_: fail("Stopped as asked before training began.", 75))
time.sleep(60)
"""
    failure = failure_of(ranks, body)
    assert "rank 1 was killed (SIGKILL)" in str(failure)


def test_a_rank_that_ignores_sigterm_is_killed(ranks, tmp_path):
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.exit(9) if rank else time.sleep(60)
"""
    failure = failure_of(ranks, body)
    assert (str(failure), failure.exit_code) == ("rank 1 ended with exit code 9.", 9)
    assert not alive(tmp_path, 0)


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [("SIGKILL", 7, "out of memory"), ("SIGSEGV", 1, "rank 1 crashed (SIGSEGV).")],
)
def test_a_rank_that_dies_without_a_word_is_described(ranks, number, code, says):
    body = f"""
if rank == 0:
    time.sleep(60)
print("last words", file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.{number})
"""
    failure = failure_of(ranks, body)
    assert says in str(failure)
    assert failure.exit_code == code
    assert "last words" in failure.detail


def test_ranks_that_stop_after_saving_are_waited_for(ranks, tmp_path):
    body = """
if rank == 0:
    time.sleep(2)
    (folder / "saved").touch()
fail("stopped after step 4; everything is saved.", 75)
"""
    failure = failure_of(ranks, body)
    assert (str(failure), failure.exit_code) == ("stopped after step 4; everything is saved.", 75)
    assert (tmp_path / "saved").exists()


PARENT = """
import os, sys
from nemoalign.launch.ranks import start_ranks
from nemoalign.launch.reports import RankFailure
try:
    start_ranks([sys.executable, sys.argv[1], sys.argv[2]], 2, dict(os.environ), threads=1)
except RankFailure as failure:
    sys.exit(failure.exit_code)
"""


@pytest.fixture
def parent(tmp_path):
    """Return a function that starts a parent of two ranks and waits until both run."""
    made: list[subprocess.Popen] = []

    def start(body: str) -> subprocess.Popen:
        (tmp_path / "rank.py").write_text(HEAD + body)
        (tmp_path / "parent.py").write_text(PARENT)
        arguments = [tmp_path / name for name in ("parent.py", "rank.py", "")]
        made.append(subprocess.Popen([sys.executable, *map(str, arguments)]))
        wait_until(lambda: len(list(tmp_path.glob("ready*"))) == 2)
        return made[0]

    yield start
    for process in made:
        process.kill()
        process.wait()


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 75), ("SIGINT", 130), ("SIGUSR1", 75)])
def test_signals_reach_every_rank_and_its_clean_end_is_the_parents(parent, number, code):
    process = parent(f"""
signal.signal(signal.{number}, lambda *_: sys.exit({code}))
(folder / f"ready{{rank}}").touch()
time.sleep(60)
""")
    process.send_signal(getattr(signal, number))
    assert process.wait(10) == code


def test_sigusr2_saves_and_goes_on(parent, tmp_path):
    process = parent("""
signal.signal(signal.SIGUSR2, lambda *_: (folder / f"saved{rank}").touch())
(folder / f"ready{rank}").touch()
while not (folder / "end").exists():
    time.sleep(0.02)
""")
    process.send_signal(signal.SIGUSR2)
    wait_until(lambda: len(list(tmp_path.glob("saved*"))) == 2)
    (tmp_path / "end").touch()
    assert process.wait(10) == 0


@pytest.mark.parametrize("second", ["SIGINT", "SIGUSR1"])
def test_a_second_signal_ends_ranks_that_do_not_listen(parent, tmp_path, second):
    process = parent("""
signal.signal(signal.SIGINT, lambda *_: (folder / f"heard{rank}").touch())
(folder / f"ready{rank}").touch()
while True:
    time.sleep(0.05)
""")
    process.send_signal(signal.SIGINT)
    wait_until(lambda: len(list(tmp_path.glob("heard*"))) == 2)
    process.send_signal(
        signal.SIGINT
    )  # the same one again: a whole job was told, not a second wish
    time.sleep(SAME_SECONDS + 0.1)
    assert all(alive(tmp_path, rank) for rank in (0, 1))
    process.send_signal(getattr(signal, second))
    assert process.wait(10) == 128 + getattr(signal, second)
    assert not any(alive(tmp_path, rank) for rank in (0, 1))


def test_a_rank_that_does_not_listen_yet_stops_all_as_asked(parent):
    process = parent("""
(folder / f"ready{rank}").touch()
time.sleep(60)
""")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == 75


def test_nothing_that_a_killed_rank_started_lives_on(parent, tmp_path):
    process = parent("""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(folder / f"started{rank + 2}").write_text(str(child.pid))
(folder / f"ready{rank}").touch()
if rank:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
""")
    assert process.wait(10) == 7
    wait_until(lambda: not any(alive(tmp_path, rank) for rank in range(4)), seconds=5)


def test_ranks_die_with_their_parent_however_it_dies(parent, tmp_path):
    process = parent("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"ready{rank}").touch()
time.sleep(60)
""")
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(tmp_path, rank) for rank in (0, 1)), seconds=5)
