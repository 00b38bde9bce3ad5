"""Which rows of a global batch lie end to end in one pack, and which rank computes it: pure arithmetic.

NeMo packs a file once, before training, so its batches are batches of packs. Here the rows of each
global batch are those of an unpacked run and only laid out otherwise, so the loss is the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Packs = list[list[int]]
"""Packs of rows, each row by its place in the lengths given."""


def share_packs(lengths: Sequence[int], capacity: int, ranks: int) -> list[Packs]:
    """Return the packs of each data-parallel rank.

    Every row is in exactly one pack, longest first; all ranks get the same number of packs, and the
    tokens of two of them differ by less than a pack. A pack without rows fills a rank up.

    Args:
        lengths: tokens of each row of the global batch.
        capacity: tokens of a pack at most; a longer row is a pack of its own.
        ranks: data-parallel ranks.
    """
    fitted = first_fit_decreasing(lengths, capacity)
    count = -(-len(fitted) // ranks) * ranks
    packs = _spread(lengths, capacity, count)
    if packs is None:
        packs = fitted + [[] for _ in range(count - len(fitted))]
    packs.sort(key=lambda pack: -sum(lengths[row] for row in pack))
    shares: list[Packs] = [[] for _ in range(ranks)]
    work = [0] * ranks
    for start in range(0, count, ranks):
        # Whoever has least to do gets the longest pack of the round.
        least_first = sorted(range(ranks), key=work.__getitem__)
        for rank, pack in zip(least_first, packs[start : start + ranks], strict=True):
            shares[rank].append(pack)
            work[rank] += sum(lengths[row] for row in pack)
    return shares


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> Packs:
    """Return few packs: rows from the longest on, each into the first pack that has room."""
    packs: Packs = []
    room: list[int] = []
    for row in _longest_first(lengths):
        length = lengths[row]
        place = next((p for p, left in enumerate(room) if length <= left), len(packs))
        if place == len(packs):
            packs.append([])
            room.append(max(capacity, length))
        packs[place].append(row)
        room[place] -= length
    return packs


def _spread(lengths: Sequence[int], capacity: int, count: int) -> Packs | None:
    """Return ``count`` packs of about the same size, or None where rows fit only more tightly."""
    packs: Packs = [[] for _ in range(count)]
    sizes = [(0, place) for place in range(count)]
    for row in _longest_first(lengths):
        size, place = sizes[0]
        if size and size + lengths[row] > capacity:
            return None
        packs[place].append(row)
        heapq.heapreplace(sizes, (size + lengths[row], place))
    return packs


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


@dataclass(frozen=True)
class Waste:
    """What packing saves in some global batches."""

    packs_per_step: float
    padding: float
    """Share of the computed positions that hold no token."""
    padding_without: float


def measure_waste(
    batches: Iterable[Sequence[int]], capacity: int, ranks: int, micro_batch_size: int
) -> Waste:
    """Return the padding of global batches, packed and in micro-batches of rows sorted by length.

    Args:
        batches: tokens of each row, a global batch at a time.
        capacity: tokens of a pack at most.
        ranks: data-parallel ranks.
        micro_batch_size: rows of a micro-batch without packing.
    """
    steps = packs = tokens = packed = padded = 0
    for lengths in batches:
        shares = [pack for share in share_packs(lengths, capacity, ranks) for pack in share]
        longest = sorted(lengths, reverse=True)[::micro_batch_size]
        steps += 1
        packs += len(shares)
        tokens += sum(lengths)
        packed += sum(lengths) + sum(not pack for pack in shares)
        padded += sum(longest) * micro_batch_size
    return Waste(packs / steps, 1 - tokens / packed, 1 - tokens / padded)
