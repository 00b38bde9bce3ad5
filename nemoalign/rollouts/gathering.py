"""What each rank found out about some rows, on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def gathered(mine: Mapping[int, T]) -> dict[int, T]:
    """Return what all ranks bring by row; of a row that several bring, the last rank's. Collective."""
    ranks = torch.distributed.get_world_size()
    if ranks == 1:
        return dict(mine)
    everywhere: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(everywhere, dict(mine))
    return {row: found for part in everywhere for row, found in part.items()}


def from_first(found: T | None) -> T:
    """Return what rank 0 found. Collective."""
    told: list[Any] = [found]
    torch.distributed.broadcast_object_list(told)
    return told[0]
