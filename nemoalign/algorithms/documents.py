"""Per-document numbers of a micro-batch: sums over the tokens of each row, padded or packed alike."""

from __future__ import annotations

import hashlib
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


def spread_documents(values: Tensor, batch: Batch) -> Tensor:
    """Return ``values`` [documents] at every position of their document, [b, s]; 0 where a pack is padded."""
    if batch.documents is None:
        return values[:, None].expand(batch.tokens.shape)
    lengths, count = batch.documents, len(batch.documents) - batch.padding_documents
    parts = [value.expand(length) for value, length in zip(values, lengths[:count], strict=True)]
    filling = values.new_zeros(sum(lengths[count:]))
    return torch.cat([*parts, filling])[None]  # [s] -> [1, s]


def answer_logprobs(output: Tensor, batch: Batch) -> Tensor:
    """Return the summed log-prob of each document's labels, [documents], in nats."""
    return sum_documents(output * (batch.labels >= 0), batch)


def answer_tokens(batch: Batch) -> Tensor:
    """Return how many labels each document has, [documents]."""
    return sum_documents((batch.labels >= 0).float(), batch)


def of_documents(output: Any, batch: Batch) -> Tensor:
    """Return what a pass without gradient keeps of a micro-batch: ``answer_logprobs``."""
    return answer_logprobs(output, batch).detach()


def document_keys(batch: Batch) -> list[bytes | None]:
    """Return what tells each document from any other answer, 16 bytes; None where nothing is learned.

    The same for a row wherever it lies: what follows its last label changes nothing of its log-prob.
    """
    lengths = list(batch.documents or ())
    if lengths:
        tokens, labels = (part[0].split(lengths) for part in (batch.tokens, batch.labels))
        count = len(lengths) - batch.padding_documents
    else:
        tokens, labels, count = batch.tokens.unbind(), batch.labels.unbind(), len(batch.tokens)
    return [_key(*document) for document in zip(tokens[:count], labels[:count], strict=True)]


def _key(tokens: Tensor, labels: Tensor) -> bytes | None:
    learned = (labels >= 0).nonzero()
    if not len(learned):
        return None
    end = int(learned[-1]) + 1
    fed = torch.stack([tokens[:end], labels[:end]]).to(torch.int64).contiguous()
    return hashlib.blake2b(fed.cpu().numpy().tobytes(), digest_size=16).digest()
