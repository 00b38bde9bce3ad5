"""Passes of a model over a rollout without gradient: numbers of answer tokens, or of whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state

from nemoalign.model.forward import forward_rewards
from nemoalign.rollouts.gathering import gathered
from nemoalign.train.passes import collect

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.data.collate import Batch
    from nemoalign.rollouts.answers import Rollout
    from nemoalign.rollouts.batching import Batching
    from nemoalign.train.passes import Forward


@dataclass(frozen=True)
class Passes:
    """Passes over the micro-batches of one rollout.

    They are those of the first pass of learning, so that the policy finds there, to the last bit, what
    it found here.
    """

    rollout: Rollout
    batching: Batching
    shares: Sequence[Sequence[int]]
    """Rows of each micro-batch of this replica."""
    device: torch.device

    @torch.no_grad()
    def of_tokens(self, chunks: Sequence[nn.Module], forward: Forward) -> Tensor:
        """Return what ``forward`` [b, s] finds at every answer token, [answers, longest], on every rank. Collective."""
        batches = [self.batching.answers(self.rollout, share) for share in self.shares]
        found = collect(chunks, batches, forward, _of_labels, self.device)
        mine: dict[int, Tensor] = {}
        for share, values in zip(self.shares, self._mine(found), strict=False):
            rows = [row for row in share if row >= 0]
            parts = values.cpu().split([len(self.rollout.answers[row].ids) for row in rows])
            mine |= dict(zip(rows, parts, strict=True))
        every = gathered(mine)
        return self.rollout.padded([every[row] for row in range(len(self.rollout.answers))])

    @torch.no_grad()
    def of_answers(self, chunks: Sequence[nn.Module], *, averages: bool = False) -> Tensor:
        """Return a reward model's first reward of every answer, [answers], on every rank. Collective."""
        batches = [self.batching.whole(self.rollout, share) for share in self.shares]
        forward = partial(forward_rewards, averages=averages)
        found = collect(chunks, batches, forward, lambda out, _: out[:, 0], self.device)
        mine: dict[int, float] = {}
        for share, values in zip(self.shares, self._mine(found), strict=False):
            pairs = zip(share, values.tolist(), strict=False)
            mine |= {row: value for row, value in pairs if row >= 0}
        every = gathered(mine)
        return torch.tensor([every[row] for row in range(len(self.rollout.answers))])

    def _mine(self, found: Sequence[Any]) -> Sequence[Tensor]:
        """Return what this rank tells the others: of equal tensor-parallel ranks one speaks."""
        return found if parallel_state.get_tensor_model_parallel_rank() == 0 else ()


def _of_labels(output: Tensor, batch: Batch) -> Tensor:
    return output[batch.labels >= 0].float()
