"""A reference whose log-probs were computed before training, so that the run holds one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from megatron.core import parallel_state

from nemoalign.algorithms.documents import document_keys, of_documents
from nemoalign.errors import ResourceError
from nemoalign.model.forward import forward_logprobs
from nemoalign.train.agreement import Attempt
from nemoalign.train.passes import collect

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.algorithms.preference import Preference
    from nemoalign.data.collate import Batch
    from nemoalign.train.logprob_store import LogprobStore


@dataclass(frozen=True)
class CachedReference:
    """Finds what was computed; computes nothing."""

    store: LogprobStore
    is_start: bool
    """The policy begins here, so that both must agree before the first step."""

    def logprobs(self, batch: Batch) -> Tensor:
        """Return the reference's log-prob of each answer of ``batch``, fp32 [documents]; 0 for fillers.

        Raises:
            ResourceError: when one is not there: the directory lost something since it was filled.
        """
        keys = document_keys(batch)
        found = torch.from_numpy(self.store.find([key or bytes(16) for key in keys]))
        learned = torch.tensor([key is not None for key in keys])
        if found[learned].isnan().any():
            raise ResourceError(
                f"{self.store.directory} lacks log-probs that were computed before training. On a "
                "cluster it must be a directory that every node sees: "
                "-s model.data.train_ds.index_mapping_dir=DIR. The same command computes what is missing."
            )
        return found.where(learned, 0.0)


@dataclass
class ReferencePass:
    """Computes what a store does not know yet, a global batch at a time."""

    algorithm: Preference
    chunks: Sequence[nn.Module]
    device: torch.device
    store: LogprobStore
    computed: int = 0
    """Answers of this replica that were not known."""

    def __post_init__(self) -> None:
        self._done: set[bytes] = set()
        self.attempt = Attempt()

    def take(self, micro_batches: Sequence[Batch]) -> None:
        """Make the answers of one global batch known. Collective over this model replica."""
        every = self.algorithm.compared(micro_batches)
        keys = [document_keys(batch) for batch in every]
        flat = [key for some in keys for key in some if key is not None and key not in self._done]
        known = self.store.find(flat)
        unknown = {key for key, value in zip(flat, known, strict=True) if value != value}
        if not unknown:
            return
        with torch.no_grad():
            found = collect(self.chunks, every, forward_logprobs, of_documents, self.device)
        self._done |= unknown
        self.computed += len(unknown)
        if found and parallel_state.get_tensor_model_parallel_rank() == 0:
            every_key = [key for some in keys for key in some]
            values = dict(zip(every_key, torch.cat(found).tolist(), strict=True))
            new = sorted(unknown)
            self.attempt.run(partial(self.store.add, new, [values[key] for key in new]))
