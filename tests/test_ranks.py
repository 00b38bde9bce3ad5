import os
import time

import pytest
import torch

pytestmark = pytest.mark.dist


def _sum_of_ranks() -> float:
    total = torch.tensor(float(os.environ["RANK"]) + 1)
    torch.distributed.all_reduce(total)
    return total.item()


def _fail_on_rank_one() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("only here")


def _die_on_rank_one() -> None:
    if os.environ["RANK"] == "1":
        os._exit(3)
    time.sleep(0.1)


def test_every_rank_takes_part_in_a_collective(two_ranks):
    assert two_ranks.run(_sum_of_ranks) == [3.0, 3.0]


def test_a_failing_rank_gives_its_whole_traceback_and_a_dead_one_its_exit_code(two_ranks):
    with pytest.raises(AssertionError, match=r"rank 1:\n(.|\n)*_fail_on_rank_one(.|\n)*only here"):
        two_ranks.run(_fail_on_rank_one)
    with pytest.raises(AssertionError, match="rank 1 died with exit code 3"):
        two_ranks.run(_die_on_rank_one)
    assert two_ranks.run(_sum_of_ranks) == [3.0, 3.0]
