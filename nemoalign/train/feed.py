"""Which rows a rank computes at each step: dataset, order and collation put together.

The rows of step ``n`` depend on the seed and ``n`` alone; ranks only share them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from nemoalign.data.collate import Batch
    from nemoalign.data.sampler import GlobalSampler


class Rows(Protocol):
    """A dataset: rows by number; the sampler's missing row is one that trains nothing."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> object: ...


@dataclass(frozen=True)
class Feed:
    """Micro-batches of one data-parallel rank."""

    rows: Rows
    sampler: GlobalSampler
    collate: Callable[[Sequence[object]], Batch]
    dp_rank: int
    dp_size: int
    micro_batch_size: int

    def step(self, consumed_samples: int) -> list[Batch]:
        """Return this rank's micro-batches of the global batch that follows ``consumed_samples``."""
        return self._collated(self.sampler.batch(consumed_samples))

    def once(self) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of every global batch, each row exactly once, in file order."""
        for batch in self.sampler.once():
            yield self._collated(batch)

    def _collated(self, batch: np.ndarray) -> list[Batch]:
        shares = self.sampler.rank_slice(batch, self.dp_rank, self.dp_size, self.micro_batch_size)
        return [self.collate([self.rows[i] for i in share]) for share in shares]
