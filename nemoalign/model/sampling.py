"""Which token comes next: the likeliest, or one drawn from a distribution that is cut and tempered.

A draw depends on the seed, the row's number and the token's place alone, never on which rows are drawn
together, on which rank, or on how many came before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 256
"""Tokens whose probabilities are summed before one of them is looked for."""
LIKELIEST = 1024
"""Tokens that are sorted first; only where they are not enough for ``top_p`` are all of them."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int = 0
    """Only so many of the likeliest; 0 for all."""
    top_p: float = 1.0
    """Only the likeliest that together have this probability."""
    min_new_tokens: int = 0
    """So many tokens before a row may stop."""
    seed: int = 1234


GREEDY = Sampling()


@dataclass(frozen=True)
class Draw:
    """One row that gets a token."""

    number: int
    """The row's own, whatever rows are with it."""
    place: int
    """Tokens it has, its prompt included."""
    written: int
    """Tokens that followed its prompt."""
    stop_ids: Collection[int]


def choose(logits: Tensor, draws: Sequence[Draw], sampling: Sampling) -> Tensor:
    """Return one token for each row of ``logits`` [rows, v], fp32, which are used up."""
    for row, draw in enumerate(draws):
        if draw.written < sampling.min_new_tokens and draw.stop_ids:
            logits[row, list(draw.stop_ids)] = -torch.inf
    if not sampling.temperature:
        return logits.argmax(-1)
    probabilities, tokens = kept(logits.div_(sampling.temperature), sampling)
    uniform = torch.tensor([_uniform(sampling.seed, draw) for draw in draws], dtype=torch.float64)
    places = _places(probabilities, uniform.to(logits.device)[:, None])
    return places[:, 0] if tokens is None else tokens.gather(-1, places)[:, 0]


def kept(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return probabilities [rows, n], up to a factor a row, and whose they are; None for every token's.

    First ``top_k`` counts, then ``top_p`` of what that leaves, the token that crosses it included.
    """
    if not sampling.top_k and sampling.top_p >= 1:
        return logits.softmax(-1), None
    count = min(sampling.top_k or LIKELIEST, logits.shape[-1])
    best, tokens = logits.topk(count)
    # Probabilities among all tokens, or among the best k where only these count.
    total = (best if sampling.top_k else logits).logsumexp(-1, keepdim=True)
    probabilities = (best - total).exp()
    if sampling.top_p >= 1:
        return probabilities, tokens
    if not sampling.top_k and count < logits.shape[-1] and _falls_short(probabilities, sampling):
        best, tokens = logits.sort(-1, descending=True)
        probabilities = (best - total).exp()
    before = probabilities.cumsum(-1) - probabilities
    return probabilities.where(before < sampling.top_p, 0.0), tokens


def _places(probabilities: Tensor, shares: Tensor) -> Tensor:
    """Return [rows, 1]: where the sum of ``probabilities`` [rows, n] crosses each share [rows, 1] of it.

    A block first and then a place in it: a running sum in double precision over a whole vocabulary
    costs as much as the softmax.
    """
    missing = -probabilities.shape[-1] % BLOCK
    padded = functional.pad(probabilities, (0, missing)) if missing else probabilities
    blocks = padded.unflatten(-1, (-1, BLOCK))
    block, shares = _crossed(blocks.sum(-1).double(), shares)
    inside = blocks.take_along_dim(block[..., None], 1)[:, 0]
    return block * BLOCK + _crossed(inside.double(), shares)[0]


def _crossed(weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the running sum of ``weights`` crosses ``shares`` of it, and what share of the weight there."""
    sums = weights.cumsum(-1)
    aims = shares * sums[:, -1:]
    # Never past the last one that has a weight, whatever rounding does.
    places = torch.searchsorted(sums, aims, right=True)
    places = places.minimum((sums < sums[:, -1:]).sum(-1, keepdim=True))
    weight = weights.gather(-1, places)
    before = sums.gather(-1, places) - weight
    return places, ((aims - before) / weight).clamp(0, 1)


def _falls_short(probabilities: Tensor, sampling: Sampling) -> bool:
    return bool((probabilities.sum(-1) < sampling.top_p).any())


def _uniform(seed: int, draw: Draw) -> float:
    """Return a number in [0, 1) that belongs to this seed, row and place."""
    source = np.random.Philox(
        key=seed, counter=np.array([draw.number, draw.place, 0, 0], np.uint64)
    )
    return float(np.random.Generator(source).random())
