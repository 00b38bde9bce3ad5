"""Micro-batches through a model, by megatron-core's schedule for however many stages there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import nn


def schedule(
    chunks: Sequence[nn.Module], micro_batches: Sequence[Any], forward_step: Any, **options: Any
) -> list[Any]:
    """Drive megatron-core's schedule over the micro-batches of this rank, with its ``options``. Collective.

    Every micro-batch has ``tokens`` [b, s].
    """
    iterators = [iter(micro_batches) for _ in chunks]
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(iterators) > 1 else iterators[0],
        model=list(chunks) if len(chunks) > 1 else chunks[0],
        num_microbatches=len(micro_batches),
        # With variable_seq_lengths the pipeline sends shapes; these two are then only hints.
        seq_length=max(batch.tokens.shape[1] for batch in micro_batches),
        micro_batch_size=micro_batches[0].tokens.shape[0],
        **options,
    )
