"""Micro-batches through a model by megatron-core's schedule; a pass without gradient needs no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

if TYPE_CHECKING:
    from torch import nn

    from nemoalign.data.collate import Batch

    Forward = Callable[[Any, Batch], torch.Tensor]
    Keep = Callable[[Any, Batch], Any]


def collect(
    chunks: Sequence[nn.Module],
    micro_batches: Sequence[Batch],
    forward: Forward,
    keep: Keep,
    device: torch.device,
) -> list[Any]:
    """Return what ``keep`` makes of each micro-batch's output; empty before the last pipeline stage.

    Collective. Nothing is dropped out; whether gradients are kept is the caller's to say.
    """
    was_training = chunks[0].training
    for chunk in chunks:
        chunk.eval()

    def forward_step(iterator: Any, model: nn.Module) -> tuple[Any, Any]:
        batch = next(iterator).to(device)
        return forward(model, batch), lambda output, **_: keep(output, batch)

    found = schedule(
        chunks, micro_batches, forward_step, forward_only=True, collect_non_loss_data=True
    )
    for chunk in chunks:
        chunk.train(was_training)
    return found


def schedule(
    chunks: Sequence[nn.Module], micro_batches: Sequence[Batch], forward_step: Any, **options: Any
) -> list[Any]:
    """Drive megatron-core's schedule over the micro-batches of this rank. Collective."""
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
