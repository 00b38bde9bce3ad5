"""Rows of logits whose vocabulary is cut over tensor-parallel ranks: whose columns, and how many at a time.

A softmax covers the real vocabulary only: columns at or above it are padding that depends on the
layout and means nothing. Arithmetic is fp32, a few rows at a time, so bf16 logits are never copied
whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Logits widened to fp32 at a time on a CPU: what its cache holds."""
GPU_CHUNK_ELEMENTS = 1 << 26
"""The same on a GPU, where every chunk costs a handful of kernel launches."""


class Shard(NamedTuple):
    """Which columns of the whole vocabulary this rank holds, and the group that holds the rest."""

    start: int
    width: int
    group: Any


def my_shard(columns: int, vocab_size: int) -> Shard:
    """Return this rank's shard; ``width`` counts its real columns, padding left out."""
    if not parallel_state.model_parallel_is_initialized():
        return Shard(0, min(columns, vocab_size), None)
    start = parallel_state.get_tensor_model_parallel_rank() * columns
    width = max(0, min(columns, vocab_size - start))
    world_size = parallel_state.get_tensor_model_parallel_world_size()
    group = parallel_state.get_tensor_model_parallel_group() if world_size > 1 else None
    return Shard(start, width, group)


def row_peaks(real: Tensor, shard: Shard) -> Tensor:
    """Return the largest logit of each row over the whole vocabulary, fp32 [rows].

    ``real`` [rows, width] are this rank's logits without padding. Collective over tp.
    """
    if shard.width:
        peaks = real.amax(-1).float()
    else:
        peaks = real.new_full((real.shape[0],), -torch.inf, dtype=torch.float32)
    if shard.group is not None:
        torch.distributed.all_reduce(peaks, torch.distributed.ReduceOp.MAX, group=shard.group)
    return peaks


def row_chunks(logits: Tensor) -> Iterator[slice]:
    """Yield slices of rows small enough to widen."""
    elements = CHUNK_ELEMENTS if logits.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    step = max(1, elements // max(logits.shape[1], 1))
    for start in range(0, logits.shape[0], step):
        yield slice(start, start + step)
