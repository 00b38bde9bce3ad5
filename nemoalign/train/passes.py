"""A pass without gradient over micro-batches, which needs no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from nemoalign.model.schedule import schedule

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
