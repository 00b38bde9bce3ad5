"""Rewards are weighted sums; who knows none leaves none; one rank calls functions for all."""

import math

import pytest
import torch

from nemoalign.config.values import RewardSource
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.rollouts.functions import RewardFunction
from nemoalign.rollouts.scoring import FunctionScorer, ModelScorer, score
from tests.data.tiny import CharTokenizer
from tests.rollouts import made, stage

TOKENIZER = CharTokenizer()
SEEN = """
def seen(prompt, response, *, wanted, **others):
    print(prompt, others)
    if response == "crash":
        raise KeyError(response)
    return None if wanted is None else len(prompt) * 100 + len(response) * 10 + wanted
"""


def spelled(*responses, **fields):
    answers = [
        made.answer([9], prompt=TOKENIZER.encode("p" * (1 + n)), group=n, text=text, **fields)
        for n, text in enumerate(responses)
    ]
    return made.Rollout(answers)


def test_rewards_are_weighted_sums_and_a_missing_part_leaves_none() -> None:
    rollout = made.rollout([1, 2, 1])
    sources = [
        stage.Fixed([1.0, 2.0, 3.0], "rm", 2.0),
        stage.Fixed([0.5, math.nan, 1.0], "f", -1.0),
    ]
    with start(stage.ONE, seed=1):
        passes = stage.passes_of(rollout, stage.batching_of(stage.ONE))
        score(rollout, passes, sources, None)
    assert rollout.rewards[[0, 2]].tolist() == [1.5, 5.0]
    assert rollout.rewarded.tolist() == [True, False, True]
    assert rollout.parts["rm"].tolist() == [1.0, 2.0, 3.0]
    assert rollout.parts["f"].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(("penalty", "rewards"), [(None, [1.0, 1.0]), (-0.25, [1.0, 0.75])])
def test_an_answer_that_does_not_end_may_lose_some_of_its_reward(penalty, rewards) -> None:
    rollout = made.Rollout([made.answer([9]), made.answer([9], finished=False)])
    with start(stage.ONE, seed=1):
        passes = stage.passes_of(rollout, stage.batching_of(stage.ONE))
        score(rollout, passes, [stage.Fixed([1.0, 1.0])], penalty)
    assert rollout.rewards.tolist() == rewards
    assert rollout.parts["fixed"].tolist() == [1.0, 1.0]


def _scored(layout: ParallelLayout, file: str) -> tuple[list[float], list[str]]:
    """Runs on each rank; only the first one has the function."""
    with start(layout, seed=1):
        rank, function = torch.distributed.get_rank(), None
        if rank == 0:
            source = RewardSource.parse(f"{file}:seen")
            function = RewardFunction(source, workers=1, seconds=20.0)
        scorer = FunctionScorer("f", 1.0, function, TOKENIZER.decode)
        try:
            rollout = spelled("ab", "crash", "", wanted=3, input="left in the row")
            passes = stage.passes_of(rollout, stage.batching_of(layout))
            return scorer.score(passes).tolist(), list(scorer.warnings())
        finally:
            scorer.close()


def check(scores: list[float]) -> None:
    assert scores[0::2] == [123.0, 303.0]
    assert math.isnan(scores[1])


def test_a_function_gets_prompt_response_and_the_rows_fields(tmp_path) -> None:
    (tmp_path / "f.py").write_text(SEEN)
    scores, warnings = _scored(stage.ONE, str(tmp_path / "f.py"))
    check(scores)
    (warning,) = warnings
    assert "raised KeyError" in warning
    assert "for 1 of 3 answers; the first: made.jsonl line 2" in warning


@pytest.mark.dist
def test_every_rank_knows_what_the_first_ones_function_said(tmp_path, two_ranks) -> None:
    (tmp_path / "f.py").write_text(SEEN)
    first, second = two_ranks.run(_scored, stage.LAYOUTS["dp2"], str(tmp_path / "f.py"))
    check(first[0])
    check(second[0])
    assert len(first[1]) == 1
    assert second[1] == []


def test_no_reward_at_all_is_one_too(tmp_path) -> None:
    (tmp_path / "f.py").write_text(SEEN)
    with start(stage.ONE, seed=1):
        source = RewardSource.parse(f"{tmp_path / 'f.py'}:seen")
        with RewardFunction(source, workers=1, seconds=20.0) as function:
            scorer = FunctionScorer("f", 1.0, function, TOKENIZER.decode)
            rollout = spelled("a", "b", wanted=None)
            passes = stage.passes_of(rollout, stage.batching_of(stage.ONE))
            score(rollout, passes, [scorer], None)
            assert rollout.rewards.isnan().all()
            assert list(scorer.warnings()) == []


def test_a_model_judges_with_its_own_values_in_place_and_no_others_afterwards() -> None:
    rollout = made.rollout([3, 1, 4], prompts=(3, 5))
    with start(stage.ONE, seed=1):
        chunks = stage.model(stage.ONE, heads=1, seed=3)
        passes = stage.passes_of(rollout, stage.batching_of(stage.ONE))
        plain = ModelScorer("rm", 1.0, chunks, averages=False)
        kept = plain.score(passes)
        start_of = stage.choose_reference(
            chunks, has_fresh_adapters=False, on_host=None, is_start=True
        )
        with torch.no_grad():
            chunks[0].rm_head.weight.mul_(2.0)
        assert torch.equal(
            ModelScorer("rm", 1.0, chunks, averages=False, in_place=start_of.in_place).score(
                passes
            ),
            kept,
        )
        assert torch.allclose(plain.score(passes), 2 * kept)
        assert list(plain.warnings()) == []
