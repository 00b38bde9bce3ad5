import errno
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from nemoalign.errors import ContentError, ResourceError
from nemoalign.train.agreement import DiskError
from nemoalign.train.child import Child


def test_it_answers_from_a_process_of_its_own() -> None:
    child = Child(os.getpid)
    pid = child.answer()
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


def test_signals_that_stop_a_run_do_not_stop_it() -> None:
    before = set(psutil.Process().children())
    child = Child(lambda: time.sleep(2) or "done")
    (process,) = set(psutil.Process().children()) - before
    time.sleep(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        process.send_signal(number)
    assert child.is_working()
    assert child.answer() == "done"


def _fails(error):
    raise error


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), DiskError),
        (ContentError("two"), ContentError),
        (KeyError("three"), RuntimeError),
    ],
)
def test_what_it_raises_is_raised_where_the_answer_is_awaited(raised, told) -> None:
    with pytest.raises(told, match=r"No space left|two|three"):
        Child(lambda: _fails(raised)).answer()


def test_it_dies_with_the_process_that_started_it() -> None:
    script = "import time; from nemoalign.train.child import Child; Child(lambda: time.sleep(60)); print('on', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    child.wait(5)


def test_one_that_somebody_kills_says_what_to_type() -> None:
    child = Child(lambda: os.kill(os.getpid(), signal.SIGKILL), "Type: nemoalign convert a -o b")
    with pytest.raises(ResourceError, match=r"ended with -9 .* Type: nemoalign convert a -o b$"):
        child.answer()
