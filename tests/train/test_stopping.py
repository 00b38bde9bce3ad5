import os
import signal
import time

import pytest

from nemoalign.train.stopping import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_is_remembered(number) -> None:
    with StopRequest(None) as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked


def test_a_second_signal_would_end_the_process() -> None:
    with StopRequest(None):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest(None):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_time_limit_asks_too() -> None:
    with StopRequest(0) as stop:
        assert stop.asked
    with StopRequest(3600) as stop:
        time.sleep(0.01)
        assert not stop.asked
