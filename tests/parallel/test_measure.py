"""Time and memory of this process, beside what the system says of it."""

import subprocess
import sys
import time

import torch

from nemoalign.parallel.measure import Stopwatch

CPU = torch.device("cpu")


def test_a_stopwatch_measures_from_start_to_stop_and_not_until_it_is_asked():
    watch = Stopwatch(CPU)
    assert watch.seconds() == 0.0
    watch.start()
    time.sleep(0.05)
    watch.stop()
    time.sleep(0.2)
    assert 0.05 <= watch.seconds() < 0.2
    watch.start()
    assert watch.seconds() == 0.0


def test_peak_memory_remembers_what_was_freed() -> None:
    script = """
import torch
from nemoalign.parallel.measure import peak_memory

cpu = torch.device("cpu")
before = peak_memory(cpu)
held = torch.ones(64 * 2**20)
del held
print(peak_memory(cpu) - before)
"""
    # In a process of its own: one that has run other tests has held more before.
    grown = int(subprocess.check_output([sys.executable, "-c", script]))
    assert 150 * 2**20 < grown < 300 * 2**20
