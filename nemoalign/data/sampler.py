"""Which rows a step takes: a pure function of seed and consumed samples, whatever the ranks.

NeMo permutes inside each rank's own share (``megatron_batch_samplers.py``), so its order depends on
the number of ranks. Here the whole data set is permuted, and ranks share out each global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from nemoalign.errors import ConfigError, DataError

MISSING_ROW = -1
"""Stands for a row that fills a micro-batch up; a dataset answers it with one that trains nothing."""


@dataclass(frozen=True, eq=False)
class GlobalSampler:
    """The order of ``total_samples`` rows in global batches.

    With ``drop_last`` (training) rows that fill no whole global batch are left out of an epoch;
    another epoch leaves out others. Without it (validation) the last batch is short. Given
    ``lengths``, the rows of one global batch are put into micro-batches by length.
    """

    total_samples: int
    global_batch_size: int
    seed: int = 1234
    shuffle: bool = True
    drop_last: bool = True
    lengths: Sequence[int] | np.ndarray | None = None
    borders: Sequence[int] = ()
    """Rows that ``once`` begins another global batch at."""
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.drop_last and self.total_samples < self.global_batch_size:
            raise DataError(
                f"The training data has {self.total_samples} usable rows, fewer than one global batch of "
                f"{self.global_batch_size}. Use --gbs {max(1, self.total_samples)} or less, or more data."
            )

    @property
    def samples_per_epoch(self) -> int:
        """Rows that one epoch uses."""
        rest = self.total_samples % self.global_batch_size if self.drop_last else 0
        return self.total_samples - rest

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of one epoch, a short last one included."""
        return -(-self.samples_per_epoch // self.global_batch_size)

    def epoch(self, consumed_samples: int) -> int:
        """Return the epoch (from 0) that the next row belongs to."""
        return consumed_samples // self.samples_per_epoch

    def batch(self, consumed_samples: int) -> np.ndarray:
        """Return the row numbers of the global batch that follows ``consumed_samples``."""
        epoch, start = divmod(consumed_samples, self.samples_per_epoch)
        end = min(start + self.global_batch_size, self.samples_per_epoch)
        return self._order(epoch)[start:end]

    def once(self) -> Iterator[np.ndarray]:
        """Yield all rows exactly once, in file order, in global batches; those before a border may be short."""
        for first, end in pairwise((0, *self.borders, self.total_samples)):
            for start in range(first, end, self.global_batch_size):
                yield np.arange(start, min(start + self.global_batch_size, end))

    def rank_slice(
        self, batch: Sequence[int] | np.ndarray, dp_rank: int, dp_size: int, micro_batch_size: int
    ) -> list[np.ndarray]:
        """Return the micro-batches of one data-parallel rank.

        All ranks get the same number of micro-batches of the same size; the ranks' rows together
        are the global batch. A short batch is filled up with ``MISSING_ROW``, the last ranks first.
        """
        rows = np.asarray(batch, np.int64)
        if self.lengths is not None:
            rows = rows[np.argsort(-np.asarray(self.lengths)[rows], kind="stable")]
        count = -(-len(rows) // (micro_batch_size * dp_size))
        filled = np.full(count * dp_size * micro_batch_size, MISSING_ROW)
        filled[: len(rows)] = rows
        # Neighbours in length go to different ranks at the same time, so that none waits for another.
        return list(filled.reshape(count, dp_size, micro_batch_size)[:, dp_rank])

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.total_samples)
        if epoch not in self._orders:
            self._orders.clear()
            # RandomState's stream is frozen for ever, Generator's is not: a resumed run must see it again.
            order = np.random.RandomState([self.seed % 2**32, epoch]).permutation(
                self.total_samples
            )
            self._orders[epoch] = order
        return self._orders[epoch]


def num_microbatches(global_batch_size: int, micro_batch_size: int, dp_size: int) -> int:
    """Return how many micro-batches a rank computes per step.

    Raises:
        ConfigError: when the global batch cannot be shared out evenly.
    """
    together = micro_batch_size * dp_size
    if global_batch_size < 1 or global_batch_size % together:
        below = global_batch_size // together * together
        sizes = f"{below} or {below + together}" if below else str(together)
        raise ConfigError(
            f"global_batch_size {global_batch_size} is not divisible by micro_batch_size "
            f"{micro_batch_size} x dp {dp_size} = {together}. Use --gbs {sizes}."
        )
    return global_batch_size // together
