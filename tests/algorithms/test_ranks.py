"""Partners over replicas: what one replica finds alone, two find together."""

import torch

from nemoalign.algorithms.pair_losses import PAIR_LOSSES, PairOptions, Pairs
from nemoalign.algorithms.ranks import at_ranks
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start

SHARES = ((0, 2), (2, 6))
"""Which of the pairs each replica has; the numbers differ."""


def pairs(first: int, last: int) -> Pairs:
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))[first:last]
    count = torch.ones(len(values))
    return Pairs(*values.unbind(1), count, count)


def losses(first: int, last: int, *, ranks: int = 1) -> list[tuple[float, ...]]:
    """Return the ranked losses of a share of the pairs, a filler between them. Collective."""
    with start(ParallelLayout(ranks), seed=1):
        mine, options = pairs(first, last), PairOptions(beta=0.5)
        filler = Pairs(*(torch.zeros(1),) * 4, torch.ones(1), torch.ones(1))
        real = [torch.zeros(1), torch.ones(last - first)]
        _, partners = at_ranks([filler, mine], real, options)
        known = Pairs(**{**vars(mine), **partners})
        made = [PAIR_LOSSES[name](known, options).tolist() for name in ("aot", "aot_unpaired")]
    return list(zip(*made, strict=True))


def of_replica() -> list[tuple[float, ...]]:
    return losses(*SHARES[torch.distributed.get_rank()], ranks=2)


def test_two_replicas_find_the_partners_that_one_finds(two_ranks) -> None:
    dealt = two_ranks.run(of_replica)
    torch.testing.assert_close(torch.tensor(dealt[0] + dealt[1]), torch.tensor(losses(0, 6)))
