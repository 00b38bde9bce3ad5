import os
import signal
import subprocess
import sys
import time

import pytest

from nemoalign.errors import Interrupted, Stopped
from nemoalign.train.stopping import SAVE_SIGNAL, STOP_SIGNALS, Asked, Requests

ALL = (*STOP_SIGNALS, SAVE_SIGNAL)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_first_signal_is_remembered(number) -> None:
    with Requests() as requests:
        assert requests.pending() == [0, 0, 0]
        os.kill(os.getpid(), number)
        assert requests.pending() == [1, float(number == signal.SIGINT), 0]
        assert requests.pending()[0] == 1


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_same_signal_twice_is_one_and_a_later_one_ends_the_process(number) -> None:
    script = """
import os, signal, sys, time
from nemoalign.train.stopping import SAME_SECONDS, Requests
number = signal.Signals(int(sys.argv[1]))
with Requests() as requests:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), number)
    print("remembered", flush=True)
    time.sleep(SAME_SECONDS + 0.05)
    os.kill(os.getpid(), number)
    print("not ended")
"""
    ended = subprocess.run([sys.executable, "-c", script, str(int(number))], capture_output=True)
    assert (ended.returncode, ended.stdout) == (-number, b"remembered\n")


def test_alone_a_signal_ends_a_run_that_has_nothing_to_save_yet() -> None:
    with pytest.raises(Interrupted, match="before training"), Requests(is_alone=True):
        os.kill(os.getpid(), signal.SIGINT)
    with Requests(is_alone=True) as requests:
        requests.training(None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.pending() == [1, 0, 0]


def test_a_wish_to_save_is_told_once(tmp_path) -> None:
    with Requests() as requests:
        requests.training(None, tmp_path)
        for wish in (lambda: os.kill(os.getpid(), SAVE_SIGNAL), (tmp_path / "SAVE").touch):
            wish()
            assert requests.pending() == [0, 0, 1]
            assert requests.pending() == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in ALL]
    with Requests():
        assert all(signal.getsignal(n) != b for n, b in zip(ALL, before, strict=True))
    assert [signal.getsignal(number) for number in ALL] == before


def test_the_time_limit_counts_from_the_opening() -> None:
    with Requests() as requests:
        time.sleep(0.01)
        requests.training(0, None)
        assert requests.pending() == [1, 0, 0]
        requests.training(3600, None)
        assert requests.pending() == [0, 0, 0]


def test_one_rank_asks_for_all() -> None:
    assert Asked.of([1.0, 0.0, 0.0]) == Asked(stop=True)
    assert Asked.of([2.0, 1.0, 0.0]) == Asked(stop=True, interrupt=True)
    assert Asked.of([0.0, 0.0, 2.0]) == Asked(save=True)


def test_a_stop_says_what_was_kept_and_where_the_same_command_begins() -> None:
    stop, interrupt = Asked(stop=True), Asked(stop=True, interrupt=True)
    with pytest.raises(Stopped, match=r"everything is saved\. The same command goes on from here"):
        stop.obey("after step 2 of 4", has_trained=True)
    with pytest.raises(Interrupted, match=r"while scoring; no file was written\. The same command starts again"):  # fmt: skip
        interrupt.obey_keeping_nothing("while scoring")
    Asked(save=True).obey_keeping_nothing("while scoring")
