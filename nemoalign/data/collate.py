"""Rows to one batch of tensors: tokens without the last, labels without the first.

Rows lie below each other, padded on the right, or end to end in a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from nemoalign.data.dataset import Sample
    from nemoalign.data.judged import Judged

IGNORED = -100
"""Label of a position that is not trained; torch's own word for it."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch; every tensor is [b, s].

    ``labels[t]`` is the token that follows ``tokens[t]``, or -100 where that is not trained;
    ``loss_mask`` is 1.0 exactly where it is.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    num_tokens: int
    """Tokens that are no padding."""
    documents: tuple[int, ...] | None = None
    """Lengths of the rows in a pack [1, s], which do not see each other; None where rows lie apart."""
    padding_documents: int = 0
    """Documents at the end of a pack that hold only padding."""
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    """What else is known of the documents, each [documents]: references, rewards, labels."""
    mismatched: Batch | None = None
    """The same prompts with other rows' answers."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device, copied in the background where that is possible."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            loss_mask=self.loss_mask.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            fields={k: v.to(device, non_blocking=True) for k, v in self.fields.items()},
        )


def collate(
    samples: Sequence[Sample],
    *,
    eos_id: int,
    pad_to: int = 1,
    fixed_length: int | None = None,
    max_length: int | None = None,
) -> Batch:
    """Return a batch of rows, padded on the right with ``eos_id``.

    Padding needs no attention mask: attention is causal, so no real token sees it.

    Args:
        samples: rows of at least two ids.
        eos_id: the id padding is made of.
        pad_to: the width is a multiple of this (sequence parallelism needs one of tp).
        fixed_length: the width, for all batches alike; no row may be longer.
        max_length: the width is never rounded up beyond this.
    """
    lengths = [len(sample.tokens) - 1 for sample in samples]
    width = _width(max(lengths), pad_to, fixed_length, max_length)
    tokens = np.full((len(samples), width), eos_id, np.int64)
    labels = np.full((len(samples), width), IGNORED, np.int64)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        tokens[row, :length] = sample.tokens[:-1]
        labels[row, :length] = np.where(sample.loss_mask[1:], sample.tokens[1:], IGNORED)
    label_tensor = torch.from_numpy(labels)
    return Batch(
        tokens=torch.from_numpy(tokens),
        labels=label_tensor,
        loss_mask=(label_tensor != IGNORED).float(),
        position_ids=torch.arange(width).expand(len(samples), width).contiguous(),
        num_tokens=_real_tokens(samples),
    )


def collate_pack(samples: Sequence[Sample], *, eos_id: int, pad_to: int = 1) -> Batch:
    """Return rows end to end as one row [1, s]; positions start anew in each.

    No label lies across a border: every row gives up its last token as input. Padding, which only
    ``pad_to`` asks for, is a document of its own, made of ``eos_id``.
    """
    lengths = [len(sample.tokens) - 1 for sample in samples]
    missing = -sum(lengths) % pad_to
    tokens = [sample.tokens[:-1] for sample in samples]
    labels = [np.where(s.loss_mask[1:], s.tokens[1:], IGNORED) for s in samples]
    positions = [np.arange(length) for length in lengths]
    label_tensor = _one_row([*labels, np.full(missing, IGNORED)])
    return Batch(
        tokens=_one_row([*tokens, np.full(missing, eos_id)]),
        labels=label_tensor,
        loss_mask=(label_tensor != IGNORED).float(),
        position_ids=_one_row([*positions, np.zeros(missing)]),
        num_tokens=_real_tokens(samples),
        documents=tuple(lengths) + ((missing,) if missing else ()),
        padding_documents=int(missing > 0),
    )


def _one_row(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))[None]


def _real_tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.tokens) - 1 for sample in samples if not sample.is_filler)


def _width(longest: int, pad_to: int, fixed_length: int | None, max_length: int | None) -> int:
    if fixed_length is not None:
        assert longest <= fixed_length, (
            f"a row of {longest} tokens in a batch of width {fixed_length}"
        )
        return fixed_length
    width = -(-longest // pad_to) * pad_to
    return width if max_length is None else max(longest, min(width, max_length))


def collate_judged(samples: Sequence[Judged], join: Callable[[list[Sample]], Batch]) -> Batch:
    """Return a batch of all answers of some rows, with what is known of each as fields.

    Args:
        samples: rows of one or two answers, all alike.
        join: ``collate`` or ``collate_pack`` with their options.
    """
    batch = join([document for sample in samples for document in sample.documents])
    fields = {
        name: torch.tensor([value for sample in samples for value in sample.fields[name]])
        for name in samples[0].fields
    }
    others = [sample.mismatched for sample in samples if sample.mismatched is not None]
    mismatched = None
    if others:
        real = torch.tensor([float(other.loss_mask.any()) for other in others])
        mismatched = replace(join(others), fields={"weight": real})
    return replace(batch, fields=fields, mismatched=mismatched)
