import os
import signal
import time

import pytest

from nemoalign.train.stopping import SAVE_SIGNAL, STOP_SIGNALS, Asked, Requests

ALL = (*STOP_SIGNALS, SAVE_SIGNAL)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_first_signal_is_remembered(number) -> None:
    with Requests(None) as requests:
        assert requests.pending() == [0, 0, 0]
        os.kill(os.getpid(), number)
        assert requests.pending() == [1, float(number == signal.SIGINT), 0]
        assert requests.pending()[0] == 1


def test_a_second_signal_would_end_the_process() -> None:
    with Requests(None):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_wish_to_save_is_told_once(tmp_path) -> None:
    with Requests(None, tmp_path) as requests:
        for wish in (lambda: os.kill(os.getpid(), SAVE_SIGNAL), (tmp_path / "SAVE").touch):
            wish()
            assert requests.pending() == [0, 0, 1]
            assert requests.pending() == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in ALL]
    with Requests(None):
        assert all(signal.getsignal(n) != b for n, b in zip(ALL, before, strict=True))
    assert [signal.getsignal(number) for number in ALL] == before


def test_the_time_limit_asks_too() -> None:
    with Requests(0) as requests:
        assert requests.pending() == [1, 0, 0]
    with Requests(3600) as requests:
        time.sleep(0.01)
        assert requests.pending() == [0, 0, 0]


def test_one_rank_asks_for_all() -> None:
    assert Asked.of([1.0, 0.0, 0.0]) == Asked(stop=True)
    assert Asked.of([2.0, 1.0, 0.0]) == Asked(stop=True, interrupt=True)
    assert Asked.of([0.0, 0.0, 2.0]) == Asked(save=True)
