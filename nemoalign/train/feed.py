"""Which rows a rank computes at each step: dataset, order and collation put together.

The rows of step ``n`` depend on the seed and ``n`` alone; ranks only share them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from nemoalign.data.packing import share_packs
from nemoalign.data.sampler import MISSING_ROW

if TYPE_CHECKING:
    from nemoalign.data.collate import Batch
    from nemoalign.data.sampler import GlobalSampler
    from nemoalign.train.answers import FixedPrompts


class Rows(Protocol):
    """A dataset: rows by number; the sampler's missing row is one that trains nothing."""

    def __len__(self) -> int: ...
    def of_batch(self, batch: np.ndarray) -> Callable[[int], object]:
        """Return how to read the rows of one global batch, by number."""
        ...

    def place(self, index: int) -> str:
        """Return file and line of a row."""
        ...

    def length(self, index: int) -> int:
        """Return the number of tokens a row feeds to the model."""
        ...


@dataclass(frozen=True)
class Feed:
    """Micro-batches of one data-parallel rank."""

    rows: Rows
    sampler: GlobalSampler
    collate: Callable[[Sequence[Any]], Batch]
    dp_rank: int
    dp_size: int
    micro_batch_size: int
    pack_capacity: int | None = None
    """Tokens of one pack at most; without it, rows lie below each other in a micro-batch."""
    multiple_of: int = 1
    """Micro-batches come in groups of so many; those without rows fill the last group up."""
    sources: Sequence[tuple[str, int]] = ()
    """What is measured by itself too: names, and the number of the row after each one's last."""

    def source_of(self, batch: np.ndarray) -> str | None:
        """Return where the rows of a global batch of ``once`` come from, if that is measured by itself."""
        return next((name for name, end in self.sources if batch[0] < end), None)

    def step(self, consumed_samples: int) -> list[Batch]:
        """Return this rank's micro-batches of the global batch that follows ``consumed_samples``."""
        return self._collated(self.sampler.batch(consumed_samples))

    def places(self, consumed_samples: int, micro_batches: Sequence[int]) -> list[str]:
        """Return where the rows of some of this rank's micro-batches of that step come from."""
        shares = self._shares(self.sampler.batch(consumed_samples))
        return [
            self.rows.place(int(i)) for number in micro_batches for i in shares[number] if i >= 0
        ]

    def once(self) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of every global batch, each row exactly once, in file order."""
        for batch in self.sampler.once():
            yield self._collated(batch)

    def once_with_rows(self) -> Iterator[tuple[np.ndarray, list[np.ndarray], list[Batch]]]:
        """Yield the same with the rows of each global batch, and those of its micro-batches."""
        for batch in self.sampler.once():
            yield batch, self._shares(batch), self._collated(batch)

    def _collated(self, batch: np.ndarray) -> list[Batch]:
        read = self.rows.of_batch(batch)
        return [self.collate([read(int(i)) for i in share]) for share in self._shares(batch)]

    def _shares(self, batch: np.ndarray) -> list[np.ndarray]:
        shares = self._filled_shares(batch)
        return shares + [np.array([MISSING_ROW])] * (-len(shares) % self.multiple_of)

    def _filled_shares(self, batch: np.ndarray) -> list[np.ndarray]:
        if self.pack_capacity is None:
            return self.sampler.rank_slice(batch, self.dp_rank, self.dp_size, self.micro_batch_size)
        lengths = [self.rows.length(int(i)) for i in batch]
        packs = share_packs(lengths, self.pack_capacity, self.dp_size)[self.dp_rank]
        return [batch[pack] if pack else np.array([MISSING_ROW]) for pack in packs]


class Feeds(NamedTuple):
    """What a run learns from and measures on, as far as it has them."""

    train: Feed | None = None
    validation: Feed | None = None
    test: Feed | None = None
    prompts: FixedPrompts | None = None
