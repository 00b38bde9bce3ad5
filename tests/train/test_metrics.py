import math

import pytest
import torch

from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.metrics import Mean, reduce_means, reduce_sums

CPU = torch.device("cpu")


def _means_and_sums(layout, parts):
    """Runs on each rank with its own parts."""
    with start(layout, seed=1):
        rank = torch.distributed.get_rank()
        means = reduce_means(parts[rank], ("a", "b"), CPU)
        return means, reduce_sums([10.0 * (rank + 1)], [1.0], CPU)


def _part(total, count):
    return {
        "a": Mean(torch.tensor(float(total)), torch.tensor(count)),
        "b": Mean(torch.tensor(0.0), torch.tensor(0)),
    }


def test_a_mean_of_masked_values_counts_only_what_is_kept() -> None:
    mean = Mean.of(torch.tensor([1.0, 2.0, 40.0]), torch.tensor([True, True, False]))
    assert (mean.total.item(), mean.count.item()) == (3.0, 2.0)


@pytest.mark.dist
def test_data_parallel_sums_are_divided_once_and_an_empty_mean_is_no_number(two_ranks) -> None:
    parts = [[_part(6, 1), _part(2, 1)], [_part(1, 7)]]
    for means, sums in two_ranks.run(_means_and_sums, ParallelLayout(2), parts):
        assert means["a"] == 1.0  # 9 over 9; a mean of the ranks' means would be 29 / 14
        assert math.isnan(means["b"])
        assert sums == [30.0, 2.0]


@pytest.mark.dist
def test_means_are_those_of_sums_taken_one_by_one_bit_for_bit(two_ranks) -> None:
    draw = torch.Generator().manual_seed(3)
    parts = [
        {
            name: Mean(
                torch.randn((), dtype=torch.float64, generator=draw) * 10.0**power,
                torch.randint(1, 99, (), generator=draw),
            )
            for name, power in (("a", 9), ("b", -9))
        }
        for _ in range(50)
    ]
    expected = {}
    for name in ("a", "b"):
        total = count = 0.0
        for part in parts:
            total += part[name].total.item()
            count += part[name].count.item()
        expected[name] = total / count
    for means, _ in two_ranks.run(_means_and_sums, ParallelLayout(2), [parts, []]):
        assert means == expected


@pytest.mark.dist
def test_tensor_parallel_copies_count_once(two_ranks) -> None:
    parts = [[_part(6, 2)], [_part(6, 2)]]
    for means, sums in two_ranks.run(_means_and_sums, ParallelLayout(2, tp=2), parts):
        assert means["a"] == 3.0
        assert sums == [10.0, 2.0]


@pytest.mark.dist
def test_stages_without_a_loss_learn_it(two_ranks) -> None:
    parts = [[], [_part(6, 2)]]
    for means, _ in two_ranks.run(_means_and_sums, ParallelLayout(2, pp=2), parts):
        assert means["a"] == 3.0
