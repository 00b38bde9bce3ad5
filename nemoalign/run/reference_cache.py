"""``--ref-cache``: the reference's log-probs of every answer a run will use, computed before it trains.

They are kept below the directory of data indexes, in one that is named by a hash of the reference: its
weights, its architecture and what else decides its numbers. Rows are told apart by what is fed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemoalign.algorithms.cached_reference import CachedReference, ReferencePass
from nemoalign.archive.store import as_bytes
from nemoalign.data.index import cache_directory
from nemoalign.errors import ConfigError
from nemoalign.train.logprob_store import LogprobStore
from nemoalign.train.metrics import reduce_sums
from nemoalign.train.rotation import find_last, read_progress
from nemoalign.train.stopping import Asked

if TYPE_CHECKING:
    from nemoalign.algorithms.preference import Preference
    from nemoalign.archive.store import TensorStore
    from nemoalign.config.schema import RunConfig
    from nemoalign.data.collate import Batch
    from nemoalign.log import Reporter
    from nemoalign.parallel.device import Backend
    from nemoalign.run.prepare import Prepared
    from nemoalign.train.feed import Feeds
    from nemoalign.train.stopping import Requests


@dataclass(frozen=True)
class CacheWork:
    """What a pass over a run's rows needs beside the model."""

    config: RunConfig
    made: Prepared
    feeds: Feeds
    backend: Backend
    reporter: Reporter
    requests: Requests | None

    def fill(
        self, algorithm: Preference, chunks: Sequence[Any], weights: TensorStore
    ) -> CachedReference:
        """Compute what is not known yet, with ``chunks``, which hold ``weights``. Collective.

        Raises:
            ResourceError: on every rank, when one of them could not write.
            Stopped: after a signal; what was computed is kept.
        """
        started = time.perf_counter()
        store = LogprobStore(self._directory(weights))
        _load(store)
        before = len(store)
        work = ReferencePass(algorithm, chunks, self.backend.device, store)
        with self.reporter.progress("reference", self._count(), "global batches") as bar:
            for micro_batches in self._batches():
                work.take(micro_batches)
                self._stop_if_asked(work)
                bar.advance(1)
        store.close()
        work.attempt.agree()
        _load(store)
        self.reporter.say(
            f"reference policy: log-probs of {len(store) - before:,} answers computed in "
            f"{time.perf_counter() - started:.1f} s, {before:,} were known, {store.size / 1e6:,.1f} MB in "
            f"{store.directory}; training holds one model"
        )
        return CachedReference(store, is_start=self._own.reference_path is None)

    @property
    def _own(self) -> Any:
        return self.config.model.algorithm

    @cached_property
    def _first_step(self) -> int:
        directory = self.config.exp_manager.explicit_log_dir
        assert directory is not None, "the command line decides it"
        last = find_last(directory / "checkpoints")
        return 0 if last is None else read_progress(last)["step"]

    def _batches(self) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of every global batch the run will learn from or measure."""
        train, limits = self.feeds.train, self.made.inputs.limits
        if train is not None:
            for step in range(self._first_step, limits.max_steps):
                yield train.step(step * limits.global_batch_size)
        for feed in (self.feeds.validation, self.feeds.test):
            if feed is not None:
                yield from feed.once()

    def _count(self) -> int:
        limits = self.made.inputs.limits
        measured = [feed for feed in (self.feeds.validation, self.feeds.test) if feed is not None]
        learned = max(0, limits.max_steps - self._first_step) if self.feeds.train else 0
        return learned + sum(sum(1 for _ in feed.sampler.once()) for feed in measured)

    def _stop_if_asked(self, work: ReferencePass) -> None:
        """End on every rank where one was asked to stop or could not write. Collective."""
        pending = self.requests.pending() if self.requests is not None else [0.0] * 3
        failed, *asked = reduce_sums([], [work.attempt.has_failed, *pending], self.backend.device)
        if failed:
            work.attempt.agree()
        when = "while the reference's log-probs were computed"
        Asked.of(asked).obey(when, has_trained=self._first_step > 0)

    def _directory(self, weights: TensorStore) -> Path:
        """Return where the log-probs of a reference with ``weights`` are kept. Collective."""
        root = self.config.model.data.train_ds.index_mapping_dir or cache_directory()
        if root is None:
            raise ConfigError(
                "--ref-cache has no directory to keep log-probs in. Name one: "
                "-s model.data.train_ds.index_mapping_dir=DIR"
            )
        model = self.config.model
        told = {
            "architecture": asdict(self.made.arch),
            "vocab_size": self.made.source.vocab_size,
            "precision": self.config.trainer.precision,
            "softmax_over_padding": model.softmax_over_padding,
            "peft": asdict(model.peft) if model.peft.restore_from_path else None,
            "weights": _digests(weights),
        }
        text = json.dumps(told, sort_keys=True, default=str)
        return Path(root) / "reference" / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digests(weights: TensorStore) -> dict[str, str]:
    """Return a hash of each tensor by name, equal in every layout; ranks share the work. Collective."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = {}
    for name in sorted(weights.tensors)[rank::ranks]:
        info = weights.tensors[name]
        told = hashlib.blake2b(f"{info.dtype} {info.shape}".encode(), digest_size=16)
        told.update(as_bytes(weights.read(name)))
        mine[name] = told.hexdigest()
    everywhere: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(everywhere, mine)
    return {name: digest for part in everywhere for name, digest in part.items()}


def _load(store: LogprobStore) -> None:
    """Know the same on every rank, whatever another process writes meanwhile. Collective."""
    torch.distributed.barrier()
    seen = [store.listing()]
    torch.distributed.broadcast_object_list(seen)
    store.load(seen[0])
