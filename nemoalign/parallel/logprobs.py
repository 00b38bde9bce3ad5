"""Log-probabilities of labels from logits whose vocabulary is cut over tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemoalign.parallel.vocabulary import my_shard, row_chunks, row_peaks


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
    shard = my_shard(logits.shape[1], vocab_size)
    real = logits[:, : shard.width]
    peaks = row_peaks(real, shard)
    sums = torch.empty(2, len(logits), device=logits.device)
    for rows in row_chunks(logits):
        part = (real[rows].float() - peaks[rows, None]).exp_()
        sums[:, rows] = torch.stack([part.sum(-1), part.square_().sum(-1)])
    if shard.group is not None:
        torch.distributed.all_reduce(sums, group=shard.group)
    return sums[1].log() - 2 * sums[0].log()


class _LabelLogprobs(torch.autograd.Function):
    """Forward keeps the logits it was given and one number per row."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, vocab_size: int, reuse_logits: bool
    ) -> Tensor:
        shard = my_shard(logits.shape[1], vocab_size)
        columns = labels - shard.start
        mine = (labels >= 0) & (columns >= 0) & (columns < shard.width)
        columns = columns.where(mine, 0)
        real = logits[:, : shard.width]
        peaks = row_peaks(real, shard)
        sums = torch.empty_like(peaks)
        for rows in row_chunks(logits):
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
        for rows in row_chunks(logits):
            # d logprob / d logits = onehot - softmax
            part = (logits[rows, : ctx.width].float() - normalizers[rows, None]).exp_()
            part.mul_(-scale[rows, None])
            hits = (scale[rows] * mine[rows])[:, None]
            if ctx.width:
                part.scatter_add_(1, columns[rows, None], hits)
            grad[rows, : ctx.width] = part
        grad[:, ctx.width :] = 0
        return grad, None, None, None
