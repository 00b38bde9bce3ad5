"""Passes over a rollout find what transformers finds, for every row, on every rank of every layout."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from nemoalign.model.forward import forward_logprobs, forward_values
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.rollouts.answers import Rollout
from tests.rollouts import made, stage

PACKED = pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])


def rollout() -> Rollout:
    return made.rollout([3, 9, 1, 5, 2], prompts=(2, 6, 11))


def _found(layout: ParallelLayout, of: Rollout, packs: bool) -> list[torch.Tensor]:
    """Runs on each rank: log-probs, then values and both kinds of rewards of a model with a head."""
    with start(layout, seed=1):
        passes = stage.passes_of(of, stage.batching_of(layout, packs=packs))
        policy, judge = stage.model(layout), stage.model(layout, heads=1, seed=3)
        return [
            passes.of_tokens(policy, forward_logprobs),
            passes.of_tokens(judge, forward_values),
            passes.of_answers(judge),
            passes.of_answers(judge, averages=True),
        ]


def expected(of: Rollout) -> list[torch.Tensor]:
    hidden, (weight, bias) = stage.hidden_of(of, seed=3), stage.head_of(seed=3)
    values = [(states @ weight.t() + bias)[:, 0] for states in hidden]
    lengths = of.lengths.tolist()
    return [
        stage.logprobs_of(of),
        # The value before a token is that of the token in front of it.
        of.padded([row[-1 - n : -1] for row, n in zip(values, lengths, strict=True)]),
        torch.stack([row[-1] for row in values]),
        torch.stack([row.mean() for row in values]),
    ]


def check(found: list[torch.Tensor], of: Rollout) -> None:
    for ours, theirs in zip(found, expected(of), strict=True):
        assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert not found[0][of.mask == 0].any()


@PACKED
def test_one_rank_finds_what_transformers_finds(packs) -> None:
    check(_found(stage.ONE, rollout(), packs), rollout())


@pytest.mark.dist
@PACKED
@pytest.mark.parametrize("layout", stage.LAYOUTS.values(), ids=list(stage.LAYOUTS))
def test_every_rank_of_every_layout_finds_it(layout, packs, two_ranks) -> None:
    for found in two_ranks.run(_found, layout, rollout(), packs):
        check(found, rollout())


def _two_numbers(model, batch):
    logprobs = forward_logprobs(model, batch)
    return torch.stack([logprobs, 2 * logprobs], -1)


def test_several_numbers_of_a_token_stay_side_by_side() -> None:
    of = rollout()
    with start(stage.ONE, seed=1):
        passes = stage.passes_of(of, stage.batching_of(stage.ONE))
        both = passes.of_tokens(stage.model(stage.ONE), _two_numbers)
    once, twice = both.unbind(-1)
    assert_close(once, stage.logprobs_of(of), rtol=0, atol=2e-5)
    assert torch.equal(twice, 2 * once)


def test_rows_may_be_shared_out_in_any_way() -> None:
    """The micro-batches of learning are those of a permutation, some of them filled up."""
    of = rollout()
    with start(stage.ONE, seed=1):
        passes = partial(stage.Passes, of, stage.batching_of(stage.ONE), device=torch.device("cpu"))
        chunks = stage.model(stage.ONE)
        found = [
            passes(shares=shares).of_tokens(chunks, forward_logprobs)
            for shares in ([[4, 0], [3], [-1], [1, 2]], [[0, 1, 2, 3, 4]])
        ]
    assert_close(found[0], found[1], rtol=0, atol=2e-5)
