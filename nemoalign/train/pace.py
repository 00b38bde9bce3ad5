"""How long each rank computes in a step, how much memory it took, and which one the others wait for."""

from __future__ import annotations

import socket
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

WINDOW = 20
"""Steps over which a rank's time is judged."""

SLOW = 1.3
"""A rank that takes this many times the median of all ranks is worth a warning."""


def find_slow(seconds: Mapping[int, float]) -> dict[int, float]:
    """Return the ranks that are slow, with how many times the median they take.

    The lower median: of two ranks it is the faster one.
    """
    usual = statistics.median_low(seconds.values())
    return {rank: own / usual for rank, own in seconds.items() if own > SLOW * usual > 0}


class Pace:
    """Seconds and memory of every rank; every rank keeps the same book.

    A rank's seconds are those before it first waits for the other replicas: reading its rows, then
    forward and backward of its own micro-batches. Ranks of one replica wait for each other within,
    so that a slow one shows as a slow replica.
    """

    def __init__(self, rank: int, hosts: Sequence[str]) -> None:
        self.rank = rank
        self.hosts = hosts
        self.memory = [0.0] * len(hosts)
        self._steps = 0
        self._totals = [0.0] * len(hosts)
        self._recent = [deque[float](maxlen=WINDOW) for _ in hosts]
        self._warned: set[int] = set()

    def told(self, seconds: float, memory: float) -> list[float]:
        """Return this rank's numbers so that their sum over ranks is the numbers of all."""
        numbers = [0.0] * (2 * len(self.hosts))
        numbers[2 * self.rank : 2 * self.rank + 2] = seconds, memory
        return numbers

    def take(self, numbers: Sequence[float], *, is_step: bool = True) -> None:
        """Note the sum over ranks of what ``told`` returned; only steps of training take time."""
        self.memory = list(numbers[1::2])
        if not is_step:
            return
        self._steps += 1
        for rank, seconds in enumerate(numbers[::2]):
            self._totals[rank] += seconds
            self._recent[rank].append(seconds)

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each rank that has become slow; asked after every step, told once."""
        if self._steps % WINDOW or len(self.hosts) == 1:
            return
        typical = {rank: statistics.median(times) for rank, times in enumerate(self._recent)}
        slow = find_slow(typical)
        for rank in sorted(slow.keys() - self._warned):
            yield (
                f"rank {rank} on {self.hosts[rank]} is slow: {typical[rank]:.3g} s a step, "
                f"{slow[rank]:.1f} times the median of {len(self.hosts)} ranks over {WINDOW} steps; "
                "all others wait for it"
            )
        self._warned = set(slow)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a rank: host, mean seconds a step, how many times the median that is, memory."""
        steps = max(1, self._steps)
        means = [total / steps for total in self._totals]
        usual = statistics.median_low(means) or 1.0
        return [
            {
                "rank": rank,
                "host": host,
                "seconds_per_step": round(means[rank], 4),
                "times_median": round(means[rank] / usual, 2),
                "peak_memory_gib": round(self.memory[rank], 3),
            }
            for rank, host in enumerate(self.hosts)
        ]


def open_pace() -> Pace:
    """Return an empty book of all ranks. Collective."""
    hosts = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(hosts, socket.gethostname())
    return Pace(torch.distributed.get_rank(), hosts)
