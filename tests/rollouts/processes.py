"""What tests of processes need: a module of a person's own, and who still lives."""

import json
import shutil
import time
from pathlib import Path


def own_module(folder):
    """Put ``rewards.py`` into a folder, and return it."""
    shutil.copy(Path(__file__).with_name("rewards.py"), folder)
    return folder


def wait_for(file, seconds=20):
    """Return what a process writes to a JSON file as soon as it has."""
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return json.loads(file.read_text())


def is_running(pid):
    """True unless the process is gone or only waits to be counted."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(*pids, seconds=10):
    """Wait until none of the processes runs."""
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
