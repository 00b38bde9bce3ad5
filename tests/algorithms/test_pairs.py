"""Scores of pairs: divided by tokens where asked for, and through each divergence's derivative."""

import math

import pytest
import torch

from nemoalign.algorithms.pairs import PairOptions, Pairs

PAIRS = Pairs(*(torch.tensor([value]) for value in (-4.0, -9.0, -6.0, -8.0, 2.0, 4.0)))
# A better answer 2 nats likelier than under the reference, a worse one 1 nat less likely.


@pytest.mark.parametrize(
    ("options", "chosen", "rejected"),
    [
        ({}, 2, -1),
        ({"average": True}, 1, -0.25),
        ({"divergence": "forward_kl"}, -math.exp(-2), -math.e),
        ({"divergence": "js_divergence"}, math.log(1 / (1 + math.exp(-2))), math.log(1 / (1 + math.e))),
        ({"divergence": "alpha_divergence", "alpha": 0.5}, -2 * math.exp(-1), -2 * math.exp(0.5)),
    ],
)  # fmt: skip
def test_scores(options, chosen, rejected) -> None:
    found = [score.item() for score in PAIRS.scores(PairOptions(**options))]
    assert found == pytest.approx([chosen, rejected], rel=1e-6)


def test_averages_look_at_the_policy_alone() -> None:
    assert [side.item() for side in PAIRS.averages()] == [-2, -2.25]
