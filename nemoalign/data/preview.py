"""A few samples as they will be trained, to be looked at before anything is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from nemoalign.log import MASKED, TRAINED, TRUNCATED

if TYPE_CHECKING:
    from nemoalign.data.dataset import SftDataset
    from nemoalign.data.templates import Encoded
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.log import Segment


def preview(
    rows: SftDataset, tokenizer: Tokenizer, count: int
) -> Iterator[tuple[str, Sequence[Segment]]]:
    """Yield the first ``count`` samples: where each comes from with its sizes, and its text in parts."""
    for number in range(min(count, len(rows))):
        texts = rows.encoded_anew(number)
        for place, encoded in enumerate(texts):
            what = rows.what(number, place)
            title = (
                f"{rows.place(number)}{what and ', '}{what}: {len(encoded.ids) - 1} tokens, "
                f"{int(encoded.loss_mask[1:].sum())} trained"
            )
            cut = sum(len(ids) for _, ids in encoded.removed)
            yield title + (f", {cut} cut away" if cut else ""), segments(encoded, tokenizer)


def segments(encoded: Encoded, tokenizer: Tokenizer) -> list[Segment]:
    """Return a row's text in runs that are learned, only read, or cut away."""
    tokens = list(
        zip(
            encoded.ids.tolist(),
            [TRAINED if one else MASKED for one in encoded.loss_mask],
            strict=True,
        )
    )
    for place, ids in reversed(encoded.removed):
        tokens[place:place] = [(one, TRUNCATED) for one in ids]
    runs = groupby(tokens, key=lambda token: token[1])
    return [(kind, _visible(tokenizer.decode([one for one, _ in run]))) for kind, run in runs]


def _visible(text: str) -> str:
    """Return a text whose control characters a terminal does not obey."""
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode()
        for one in text
    )
