"""Every rank knows what any rank found out."""

import pytest
import torch

from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.rollouts.gathering import from_first, gathered


def _told() -> tuple[dict, str | None]:
    rank = torch.distributed.get_rank()
    mine = {rank: torch.full((rank + 1,), float(rank)), 7: "later" if rank else "earlier"}
    return gathered(mine), from_first("of the first" if rank == 0 else None)


@pytest.mark.dist
def test_two_ranks_know_the_same(two_ranks) -> None:
    for rows, first in two_ranks.run(_told):
        assert rows[0].tolist() == [0.0]
        assert rows[1].tolist() == [1.0, 1.0]
        assert rows[7] == "later"
        assert first == "of the first"


def test_a_rank_alone_knows_what_it_found() -> None:
    mine = {3: "three", 1: "one"}
    with start(ParallelLayout(1), seed=1):
        assert gathered(mine) == mine
        assert from_first("mine") == "mine"
