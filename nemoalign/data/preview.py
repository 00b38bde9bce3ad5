"""A few samples as they will be trained, to be looked at before anything is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemoalign.data.dataset import Sample, SftDataset
    from nemoalign.data.tokenizer import Tokenizer

OPEN, CLOSE = "⟦", "⟧"
"""What stands around the text that is learned."""


def preview(rows: SftDataset, tokenizer: Tokenizer, count: int) -> Iterator[str]:
    """Yield the first ``count`` samples: where each comes from, its sizes, its text with marks."""
    for number in range(min(count, len(rows))):
        sample = rows[number]
        trained = int(sample.loss_mask[1:].sum())
        yield f"{sample.source}: {rows.length(number)} tokens, {trained} trained"
        yield marked_text(sample, tokenizer)


def marked_text(sample: Sample, tokenizer: Tokenizer) -> str:
    """Return a sample's text with what is learned between ``OPEN`` and ``CLOSE``."""
    parts: list[str] = []
    places = range(len(sample.tokens))
    for is_trained, run in groupby(places, key=lambda place: bool(sample.loss_mask[place])):
        text = tokenizer.decode([int(sample.tokens[place]) for place in run])
        parts.append(f"{OPEN}{text}{CLOSE}" if is_trained else text)
    return "".join(parts)
