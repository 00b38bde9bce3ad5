"""What stands at the same rank of the sorted global batch: AOT's losses couple pairs of all replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from nemoalign.algorithms.pairs import PairOptions, Pairs

AT_RANK = ("reference_at_rank", "rejected_at_rank", "chosen_at_rank")
"""The fields of ``Pairs`` that hold partners."""


def at_ranks(
    batches: Sequence[Pairs], real: Sequence[Tensor], options: PairOptions
) -> list[dict[str, Tensor]]:
    """Return for each micro-batch of pairs the partners of its pairs, by ``Pairs``'s field names.

    Collective over the data-parallel group. ``real`` [n] is above 0 for pairs that are no fillers;
    fillers get 0.
    """
    columns = []
    for pairs in batches:
        chosen, rejected = pairs.scores(options)
        reference = pairs.chosen_reference - pairs.rejected_reference
        columns.append(torch.stack([pairs.chosen - pairs.rejected, reference, chosen, rejected], 1))
    sizes = [len(part) for part in columns]
    everyone, first = gather_rows(
        torch.cat([torch.cat(columns), torch.cat(list(real))[:, None]], 1)
    )
    counted = everyone[:, 4] > 0
    ratio, reference, chosen, rejected = everyone[counted, :4].unbind(1)
    partners = torch.zeros_like(everyone[:, :3])
    partners[counted] = torch.stack(
        [
            ranked_partners(ratio, reference),
            ranked_partners(chosen, rejected),
            ranked_partners(rejected, chosen),
        ],
        1,
    )
    mine = partners[first : first + sum(sizes)].split(sizes)
    return [dict(zip(AT_RANK, part.unbind(1), strict=True)) for part in mine]


def gather_rows(mine: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all replicas [n, k], in their order, and where this one's begin.

    Collective over the data-parallel group; replicas may have different numbers of rows.
    """
    group: Any = parallel_state.get_data_parallel_group()
    count = torch.tensor([len(mine)], device=mine.device)
    counts = [torch.empty_like(count) for _ in range(group.size())]
    torch.distributed.all_gather(counts, count, group=group)
    lengths = [int(one) for one in counts]
    padded = mine.new_zeros(max(lengths), mine.shape[1])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in lengths]
    torch.distributed.all_gather(parts, padded, group=group)
    rows = [part[:length] for part, length in zip(parts, lengths, strict=True)]
    return torch.cat(rows), sum(lengths[: parallel_state.get_data_parallel_rank()])


def ranked_partners(mine: Tensor, others: Tensor) -> Tensor:
    """Return [n]: of ``others`` [n] the value that stands at the rank each of ``mine`` [n] has."""
    partners = torch.empty_like(others)
    partners[mine.argsort(stable=True)] = others.sort().values
    return partners
