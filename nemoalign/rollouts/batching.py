"""Rows of a rollout as micro-batches of this replica, packed or below each other, with numbers of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from nemoalign.data.collate import Batch, collate, collate_pack
from nemoalign.data.dataset import Sample
from nemoalign.data.packing import share_packs
from nemoalign.data.sampler import MISSING_ROW, GlobalSampler
from nemoalign.model.forward import LENGTH

if TYPE_CHECKING:
    from torch import Tensor

    from nemoalign.rollouts.answers import Rollout


@dataclass(frozen=True)
class Batching:
    """How rows are shared out over replicas and laid into micro-batches."""

    dp_rank: int
    dp_size: int
    micro_batch_size: int
    eos_id: int
    pack_capacity: int | None = None
    """Tokens of one pack at most; without it rows lie below each other."""
    pad_to: int = 1
    multiple_of: int = 1

    def shares(self, rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """Return this replica's micro-batches of some rows, of which ``lengths`` says the tokens of any.

        Every replica gets as many; ``MISSING_ROW`` fills up.
        """
        if self.pack_capacity is not None:
            packs = share_packs([lengths[row] for row in rows], self.pack_capacity, self.dp_size)
            mine = [[rows[i] for i in pack] or [MISSING_ROW] for pack in packs[self.dp_rank]]
        else:
            order = GlobalSampler(len(rows), len(rows), shuffle=False)
            table = np.asarray(sorted(rows, key=lambda row: -lengths[row]))
            parts = order.rank_slice(
                np.arange(len(rows)), self.dp_rank, self.dp_size, self.micro_batch_size
            )
            mine = [[int(table[i]) if i >= 0 else MISSING_ROW for i in part] for part in parts]
        return mine + [[MISSING_ROW]] * (-len(mine) % self.multiple_of)

    def answers(
        self, rollout: Rollout, rows: Sequence[int], fields: Mapping[str, Tensor] | None = None
    ) -> Batch:
        """Return some rows as a batch whose labels are their answers.

        ``fields`` are numbers of answer tokens, [answers, longest]; the batch has them where its labels
        are and 0 elsewhere.
        """
        batch = self._joined([self._sample(rollout, row) for row in rows])
        known = batch.labels >= 0
        made: dict[str, Tensor] = {}
        for name, values in (fields or {}).items():
            spread = torch.zeros(batch.labels.shape)
            parts = [values[row, : len(rollout.answers[row].ids)] for row in rows if row >= 0]
            spread[known] = torch.cat([*parts, torch.zeros(0)])
            made[name] = spread
        return replace(batch, fields=made)

    def whole(self, rollout: Rollout, rows: Sequence[int]) -> Batch:
        """Return some rows as a reward model reads them: to their last token, which is an input too."""
        samples = [self._sample(rollout, row) for row in rows]
        end = np.int32(self.eos_id)
        batch = self._joined([_silent(np.append(s.tokens, end), s) for s in samples])
        lengths = torch.tensor([float(len(sample.tokens)) for sample in samples])
        return replace(batch, fields={LENGTH: lengths})

    def _joined(self, samples: Sequence[Sample]) -> Batch:
        join = collate if self.pack_capacity is None else collate_pack
        return join(samples, eos_id=self.eos_id, pad_to=self.pad_to)

    def _sample(self, rollout: Rollout, row: int) -> Sample:
        if row == MISSING_ROW:
            filler = np.full(2, self.eos_id, np.int32)
            return Sample(filler, np.zeros(2, bool), "filler", is_filler=True)
        answer = rollout.answers[row]
        learned = np.zeros(len(answer.question.prompt.ids) + len(answer.ids), bool)
        learned[len(answer.question.prompt.ids) :] = True
        return Sample(answer.tokens, learned, answer.question.prompt.source)


def _silent(tokens: np.ndarray, sample: Sample) -> Sample:
    return replace(sample, tokens=tokens, loss_mask=np.zeros(len(tokens), bool))


def minibatches(count: int, size: int, seed: int, consumed: int, epoch: int) -> list[list[int]]:
    """Return the rows of each update of a pass over a rollout: a permutation that depends on these numbers alone."""
    # RandomState's stream is frozen for ever, so that a resumed run sees it again.
    order = np.random.RandomState([seed % 2**32, consumed, epoch, 17]).permutation(count)
    return [order[start : start + size].tolist() for start in range(0, count, size)]
