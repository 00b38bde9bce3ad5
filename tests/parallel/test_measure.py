"""Time and memory of this process, beside what the system says of it."""

import time

import psutil
import torch

from nemoalign.parallel.measure import Stopwatch, peak_memory

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
    unused = max(0, peak_memory(CPU) - psutil.Process().memory_info().rss)
    before = peak_memory(CPU)
    size = unused + 64 * 2**20
    held = torch.ones(size // 4)
    del held
    assert before + 50 * 2**20 < peak_memory(CPU) < before + 100 * 2**20
