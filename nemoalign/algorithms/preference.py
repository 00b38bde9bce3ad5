"""What algorithms share that keep a policy near a reference: its log-probs, and the proof before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemoalign.algorithms.documents import of_documents
from nemoalign.model.forward import forward_logprobs
from nemoalign.train.algorithm import Algorithm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.algorithms.cached_reference import CachedReference
    from nemoalign.data.collate import Batch
    from nemoalign.train.learner import Learner

REFERENCE = "reference_logprobs"
"""The field of a batch with the reference's log-prob of every answer, [documents], in nats."""
WEIGHT = "weight"
"""The field that is above 0 for answers that are no fillers, [documents]."""


class Preference(Algorithm):
    """Rows of judged answers, compared with what a reference policy thinks of them."""

    cached: CachedReference | None = None
    """The reference's log-probs where they were computed before training; then ``reference`` is None."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def uses_mismatched(self) -> bool:
        """True when prompts with other rows' answers are compared too."""
        return False

    @property
    def starts_at_reference(self) -> bool:
        """True when policy and reference are the same before the first step."""
        known = self.cached or self.reference
        return known is not None and known.is_start

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probs of the labels, [b, s]; zero where a position is not learned."""
        return forward_logprobs(model, batch)

    def with_reference(self, learner: Learner, batches: Sequence[Batch]) -> list[Batch]:
        """Return the micro-batches, and theirs that are mismatched, with the reference's log-probs.

        Collective. Nothing is added on a pipeline stage before the last.
        """
        every = self.compared(batches)
        if self.cached is not None:
            found = [self.cached.logprobs(batch) for batch in every]
            return parted(with_field(every, REFERENCE, found), len(batches))
        assert self.reference is not None, "a run whose loss needs a reference has one"
        with self.reference.in_place():
            found = learner.collect(every, forward_logprobs, of_documents)
        return parted(with_field(every, REFERENCE, found), len(batches))

    def compared(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return every micro-batch the reference judges: first those given, then their mismatched ones."""
        others = [b.mismatched for b in batches if b.mismatched is not None]
        return [*batches, *others] if self.uses_mismatched else list(batches)


def parted(every: Sequence[Batch], count: int) -> list[Batch]:
    """Return the first ``count`` micro-batches, with those after them as their mismatched ones."""
    mine, others = every[:count], every[count:]
    if not others:
        return list(mine)
    return [replace(b, mismatched=other) for b, other in zip(mine, others, strict=True)]


def with_field(batches: Sequence[Batch], name: str, found: Sequence[Tensor]) -> list[Batch]:
    """Return the micro-batches with one more field each; as they are where nothing was ``found``."""
    if not found:  # a pipeline stage before the last
        return list(batches)
    return [
        replace(batch, fields={**batch.fields, name: values})
        for batch, values in zip(batches, found, strict=True)
    ]
