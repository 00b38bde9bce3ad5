"""The process that calls a function lives exactly as long as the one that asks, and by no other's word."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemoalign.config.values import RewardSource
from nemoalign.rollouts.functions import RewardFunction
from tests.rollouts.processes import is_running, own_module, wait_for, wait_until_gone

ASK = """
import sys
from nemoalign.config.values import RewardSource
from nemoalign.rollouts.functions import RewardFunction
source, response, file = sys.argv[1:]
function = RewardFunction(RewardSource.parse(source), workers=2, seconds=60)
print(function.score([("p", response, {"file": file})] * 2), flush=True)
"""


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """Start processes of which each asks a function of ``rewards.py`` for a reward, and does nothing else."""
    monkeypatch.chdir(own_module(tmp_path))
    monkeypatch.setenv("RANK", "0")
    processes = []

    def ask(source, response):
        command = [sys.executable, "-c", ASK, source, response, str(tmp_path / "told")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, **pipes))
        return processes[-1]

    yield ask
    for process in processes:
        process.kill()
        process.communicate()


def test_it_knows_its_place_and_nothing_of_torch_or_ranks(asking, tmp_path):
    asker = asking("rewards:tell", "0")
    out, _ = asker.communicate(timeout=20)
    told = wait_for(tmp_path / "told")
    assert out == "[1.0, 1.0]\n"
    assert (told["torch"], told["rank"], told["stdin"]) == (False, None, "")
    assert told["path"] == str(tmp_path)


def test_what_it_prints_goes_to_stderr(asking):
    out, err = asking("rewards.py:noisy", "größer").communicate(timeout=20)
    assert out == "[1.0, 1.0]\n"
    for noise in ("noise of an import", '{"problem": "no"}', "größer"):
        assert noise in err.splitlines()


def test_it_dies_with_who_asks_and_so_does_what_it_started(asking, tmp_path):
    asker = asking("rewards:tell", "60")
    told = wait_for(tmp_path / "told")
    assert is_running(told["child"])
    asker.kill()
    wait_until_gone(told["pid"], told["child"])


def test_signals_that_stop_a_run_do_not_reach_a_function(tmp_path, monkeypatch):
    monkeypatch.chdir(own_module(tmp_path))
    with RewardFunction(RewardSource.parse("rewards:tell"), workers=1, seconds=20) as function:
        asker = _signalling(tmp_path / "told")
        assert function.score([("p", "1", {"file": str(tmp_path / "told")})]) == [1.0]
        assert asker.wait(10) == 0
        assert function.failures == ()


def _signalling(file):
    """Start a process that sends all that stops a run to the pid that ``file`` will tell."""
    code = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from tests.rollouts.processes import wait_for\n"
        "for number in sys.argv[2:]:\n"
        "    os.kill(wait_for(Path(sys.argv[1]))['pid'], int(number))"
    )
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    command = [sys.executable, "-c", code, str(file), *(str(int(n)) for n in numbers)]
    project = str(Path(__file__).parents[2])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": project})


def test_what_a_function_forks_is_stopped_as_others_are(tmp_path, monkeypatch):
    (tmp_path / "forks.py").write_text(
        "import multiprocessing, time\n"
        "def f(prompt, response):\n"
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "    child.start()\n"
        "    child.terminate()\n"
        "    child.join()\n"
        "    return child.exitcode\n"
    )
    monkeypatch.chdir(tmp_path)
    before = time.monotonic()
    with RewardFunction(RewardSource.parse("forks:f"), workers=1, seconds=20) as function:
        assert function.score([("p", "r", {})]) == [-signal.SIGTERM]
    assert time.monotonic() - before < 10
