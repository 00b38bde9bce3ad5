"""Log-probabilities of labels from logits whose vocabulary is cut over tensor-parallel ranks.

The softmax covers the real vocabulary only: columns at or above it are padding that depends on the
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


def vocab_parallel_logprobs(
    logits: Tensor, labels: Tensor, vocab_size: int, *, reuse_logits: bool = False
) -> Tensor:
    """Return natural-log probabilities of ``labels`` [...], fp32, from ``logits`` [..., v/tp].

    Collective over tp: every tp rank must call it, with the same labels. A negative label gives 0 and
    no gradient. ``reuse_logits`` lets the backward pass write the gradient over the logits: only for a
    caller that owns them and walks back once.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    return _LabelLogprobs.apply(flat, labels.reshape(-1), vocab_size, reuse_logits).view(
        labels.shape
    )


@torch.no_grad()
def vocab_parallel_concentration(logits: Tensor, vocab_size: int) -> Tensor:
    """Return log of the sum of squared probabilities of each row, fp32 [rows], of ``logits`` [rows, v/tp].

    The log-prob a token drawn from the policy has on average, in the sense of WPO (arXiv 2406.11827,
    eq. 2). Collective over tp, without gradient.
    """
    shard = _my_shard(logits.shape[1], vocab_size)
    real = logits[:, : shard.width]
    peaks = _row_peaks(real, shard)
    sums = torch.empty(2, len(logits), device=logits.device)
    for rows in _chunks(logits):
        part = (real[rows].float() - peaks[rows, None]).exp_()
        sums[:, rows] = torch.stack([part.sum(-1), part.square_().sum(-1)])
    if shard.group is not None:
        torch.distributed.all_reduce(sums, group=shard.group)
    return sums[1].log() - 2 * sums[0].log()


class _Shard(NamedTuple):
    """Which columns of the whole vocabulary this rank holds, and the group that holds the rest."""

    start: int
    width: int
    group: Any


def _my_shard(columns: int, vocab_size: int) -> _Shard:
    """Return this rank's shard; ``width`` counts its real columns, padding left out."""
    if not parallel_state.model_parallel_is_initialized():
        return _Shard(0, min(columns, vocab_size), None)
    start = parallel_state.get_tensor_model_parallel_rank() * columns
    width = max(0, min(columns, vocab_size - start))
    world_size = parallel_state.get_tensor_model_parallel_world_size()
    group = parallel_state.get_tensor_model_parallel_group() if world_size > 1 else None
    return _Shard(start, width, group)


class _LabelLogprobs(torch.autograd.Function):
    """Forward keeps the logits it was given and one number per row."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, vocab_size: int, reuse_logits: bool
    ) -> Tensor:
        shard = _my_shard(logits.shape[1], vocab_size)
        columns = labels - shard.start
        mine = (labels >= 0) & (columns >= 0) & (columns < shard.width)
        columns = columns.where(mine, 0)
        real = logits[:, : shard.width]
        peaks = _row_peaks(real, shard)
        sums = torch.empty_like(peaks)
        for rows in _chunks(logits):
            sums[rows] = (real[rows].float() - peaks[rows, None]).exp_().sum(-1)
        chosen = logits.gather(1, columns[:, None])[:, 0].float() - peaks
        totals = torch.stack((sums, chosen.where(mine, 0.0)))
        if shard.group is not None:
            torch.distributed.all_reduce(totals, group=shard.group)
        log_sums = totals[0].log()
        ctx.save_for_backward(logits, labels, columns, mine, peaks + log_sums)
        ctx.width, ctx.reuse_logits = shard.width, reuse_logits
        return (totals[1] - log_sums).where(labels >= 0, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, columns, mine, normalizers = ctx.saved_tensors
        scale = grads[0].float().where(labels >= 0, 0.0)
        # Detached, so that autograd does not count the overwriting as a change of its saved logits.
        grad = logits.detach() if ctx.reuse_logits else torch.empty_like(logits)
        for rows in _chunks(logits):
            # d logprob / d logits = onehot - softmax
            part = (logits[rows, : ctx.width].float() - normalizers[rows, None]).exp_()
            part.mul_(-scale[rows, None])
            hits = (scale[rows] * mine[rows])[:, None]
            if ctx.width:
                part.scatter_add_(1, columns[rows, None], hits)
            grad[rows, : ctx.width] = part
        grad[:, ctx.width :] = 0
        return grad, None, None, None


def _row_peaks(real: Tensor, shard: _Shard) -> Tensor:
    """Return the largest logit of each row over the whole vocabulary."""
    if shard.width:
        peaks = real.amax(-1).float()
    else:
        peaks = real.new_full((real.shape[0],), -torch.inf, dtype=torch.float32)
    if shard.group is not None:
        torch.distributed.all_reduce(peaks, torch.distributed.ReduceOp.MAX, group=shard.group)
    return peaks


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Yield slices of rows small enough to widen."""
    elements = CHUNK_ELEMENTS if logits.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    step = max(1, elements // max(logits.shape[1], 1))
    for start in range(0, logits.shape[0], step):
        yield slice(start, start + step)
