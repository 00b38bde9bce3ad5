"""Ranks of somebody else: torchrun's die with it, anybody else's are left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RANK = """
import os, sys, time
from pathlib import Path
from nemoalign.launch.lifeline import follow_parent
follow_parent(os.environ)
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""
STARTER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.mark.parametrize(("name", "dies"), [("TORCHELASTIC_RUN_ID", True), ("SLURM_PROCID", False)])
def test_only_ranks_whose_starter_waits_for_them_die_with_it(tmp_path, name, dies):
    script, told = tmp_path / "rank.py", tmp_path / "pid"
    script.write_text(RANK)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(script), str(told)],
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "1", name: "1"},
    )
    deadline = time.monotonic() + 20
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    rank = int(told.read_text())
    starter.kill()
    starter.wait()
    time.sleep(0.5)
    try:
        assert is_running(rank) is not dies
    finally:
        if is_running(rank):
            os.kill(rank, signal.SIGKILL)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
