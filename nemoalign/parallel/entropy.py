"""Entropy of the next token from logits whose vocabulary is cut over tensor-parallel ranks.

What NeMo-Aligner's ``calculate_distributed_entropy`` computes from gathered logits, without the
gathering, and with a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemoalign.parallel.vocabulary import my_shard, row_chunks, row_peaks


def vocab_parallel_entropy(logits: Tensor, vocab_size: int) -> Tensor:
    """Return -sum p log p of each row, in nats, fp32 [rows], of ``logits`` [rows, v/tp].

    Collective over tp: every tp rank must call it. Its backward pass is local and reads the logits,
    which nobody may have written over until then.
    """
    return _Entropy.apply(logits, vocab_size)


class _Entropy(torch.autograd.Function):
    """Forward keeps the logits it was given and two numbers per row.

    With x = logits - peak and S = sum exp(x), H = log S - sum(x exp(x)) / S.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, vocab_size: int) -> Tensor:
        shard = my_shard(logits.shape[1], vocab_size)
        real = logits[:, : shard.width]
        peaks = row_peaks(real, shard)
        sums = torch.empty(2, len(logits), device=logits.device)
        for rows in row_chunks(logits):
            below = real[rows].float() - peaks[rows, None]
            weights = below.exp()
            sums[:, rows] = torch.stack([weights.sum(-1), below.mul_(weights).sum(-1)])
        if shard.group is not None:
            torch.distributed.all_reduce(sums, group=shard.group)
        log_sums = sums[0].log()
        entropies = log_sums - sums[1] / sums[0]
        ctx.save_for_backward(logits, peaks + log_sums, entropies)
        ctx.width = shard.width
        return entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, normalizers, entropies = ctx.saved_tensors
        scale = grads[0].float()
        grad = torch.empty_like(logits)
        for rows in row_chunks(logits):
            # dH / d logits = -p (log p + H)
            part = logits[rows, : ctx.width].float() - normalizers[rows, None]
            chances = part.exp().mul_(-scale[rows, None])
            grad[rows, : ctx.width] = part.add_(entropies[rows, None]).mul_(chances)
        grad[:, ctx.width :] = 0
        return grad, None
