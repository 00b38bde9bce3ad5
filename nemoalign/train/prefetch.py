"""The next step's rows are made while the current step is computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from nemoalign.train.feed import Feed

if TYPE_CHECKING:
    from nemoalign.data.collate import Batch


@dataclass(frozen=True)
class PrefetchingFeed(Feed):
    """A feed whose rows take time: one thread reads and tokenizes those of the next global batch.

    What a step gets is what ``Feed`` would give it; an error is raised in the step that needs the row.
    """

    _worker: ThreadPoolExecutor = field(
        default_factory=partial(ThreadPoolExecutor, 1, "prefetch"), init=False, repr=False
    )
    _ahead: dict[int, Future[list[Batch]]] = field(default_factory=dict, init=False, repr=False)

    def step(self, consumed_samples: int) -> list[Batch]:
        """Return this rank's micro-batches, made before where they are the ones expected."""
        ready = self._ahead.pop(consumed_samples, None)
        wait(self._ahead.values())
        self._ahead.clear()
        made = super().step(consumed_samples) if ready is None else ready.result()
        following = consumed_samples + self.sampler.global_batch_size
        self._ahead[following] = self._worker.submit(super().step, following)
        return made

    def places(self, consumed_samples: int, micro_batches: Sequence[int]) -> list[str]:
        """Return where rows come from; the sampler is not asked by two threads at once."""
        wait(self._ahead.values())
        return super().places(consumed_samples, micro_batches)
