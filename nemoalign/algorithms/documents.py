"""Per-document numbers of a micro-batch: sums over the tokens of each row, padded or packed alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nemoalign.data.collate import Batch


def sum_documents(values: Tensor, batch: Batch) -> Tensor:
    """Return the sums of ``values`` [b, s] over each document of ``batch``, [documents].

    Where rows lie below each other every row is one; in a pack [1, s] they lie side by side. What
    only fills a row up comes last and is left out.
    """
    if batch.documents is None:
        return values.sum(-1)
    count = len(batch.documents) - batch.padding_documents
    sums = [part.sum() for part in values[0].split(list(batch.documents))]
    return torch.stack(sums[:count])


def answer_logprobs(output: Tensor, batch: Batch) -> Tensor:
    """Return the summed log-prob of each document's labels, [documents], in nats."""
    return sum_documents(output * (batch.labels >= 0), batch)


def answer_tokens(batch: Batch) -> Tensor:
    """Return how many labels each document has, [documents]."""
    return sum_documents((batch.labels >= 0).float(), batch)


def of_documents(output: Any, batch: Batch) -> Tensor:
    """Return what a pass without gradient keeps of a micro-batch: ``answer_logprobs``."""
    return answer_logprobs(output, batch).detach()
