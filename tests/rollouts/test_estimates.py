"""Advantages of a rollout: NeMo-Aligner's and NeMo-RL's numbers, and what nothing is learned from."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nemoalign.algorithms.kl import kl_estimate
from nemoalign.config.ppo import PpoSettings
from nemoalign.rollouts.answers import Rollout
from nemoalign.rollouts.estimates import estimate, explained_variance, learned
from tests.rollouts import made

VECTORS = Path(__file__).parents[1] / "fixtures/vectors"
GAE = json.loads((VECTORS / "gae.json").read_text())
GRPO = json.loads((VECTORS / "grpo_nemo_rl.json").read_text())
MASK = torch.tensor(GAE["mask"]) > 0
KINDS = ("gae", "reinforce", "rloo", "grpo")


def at_answers(rows) -> torch.Tensor:
    """NeMo-Aligner's columns, prompts and all, as numbers of answer tokens alone."""
    parts = [row[mask] for row, mask in zip(torch.tensor(rows), MASK, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def stored() -> Rollout:
    rollout = made.rollout(MASK.sum(1).tolist(), rewards=torch.tensor(GAE["rewards"]))
    rollout.logprobs = at_answers(GAE["logprobs"])
    rollout.reference = at_answers(GAE["init_logprobs"])
    rollout.values = at_answers(GAE["values"])
    return rollout


@pytest.mark.parametrize("case", GAE["cases"], ids=lambda case: f"{case['kl_penalty']} {case['discount']} {case['gae_lambda']}")  # fmt: skip
def test_advantages_and_returns_are_nemo_aligners(case) -> None:
    own = PpoSettings(
        initial_policy_kl_penalty=case["kl_penalty"],
        kl_estimator="abs" if case["use_absolute_kl"] else "k1",
        discount_factor=case["discount"],
        gae_lambda=case["gae_lambda"],
        normalize_advantages=False,
    )
    rollout = stored()
    estimate(rollout, own)
    assert_close(rollout.advantages, at_answers(case["advantages"]), rtol=0, atol=1e-5)
    assert_close(rollout.returns, at_answers(case["returns"]), rtol=0, atol=1e-5)
    if "normalized_advantages" in case:
        estimate(rollout, replace(own, normalize_advantages=None))
        expected = at_answers(case["normalized_advantages"])
        assert_close(rollout.advantages, expected, rtol=0, atol=1e-5)
        assert_close(rollout.returns, at_answers(case["returns"]), rtol=0, atol=1e-5)


def grouped(prompts, rewards, **parts) -> Rollout:
    numbers = [prompts.index(prompt) for prompt in prompts]
    rollout = made.rollout([2] * len(prompts), rewards=torch.tensor(rewards).float(), **parts)
    rollout.answers = [
        replace(answer, group=number)
        for answer, number in zip(rollout.answers, numbers, strict=True)
    ]
    return rollout


def test_rloo_measures_by_nemo_aligners_baseline() -> None:
    case = GAE["rloo"]
    # The last row is no other's measure; NeMo-Aligner's own baseline of it is another matter.
    rewards = [r if valid else math.nan for r, valid in zip(case["rewards"], case["mask"], strict=True)]  # fmt: skip
    rollout = grouped(case["prompts"], rewards)
    estimate(rollout, PpoSettings(advantage="rloo"))
    expected = torch.tensor(case["rewards"]) - torch.tensor(case["baseline"])
    expected[-1] = 0.0
    assert_close(rollout.advantages, expected[:, None].expand(-1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", GRPO["grpo"], ids=lambda case: f"{case['leave_one_out']} {case['normalize']}")  # fmt: skip
def test_grpo_is_nemo_rls(case) -> None:
    own = PpoSettings(
        advantage="grpo",
        group=4,
        leave_one_out=case["leave_one_out"],
        scale_rewards="group" if case["normalize"] else "none",
    )
    rollout = grouped(GRPO["prompts"], GRPO["rewards"])
    estimate(rollout, own)
    expected = torch.tensor(case["advantages"])[:, None].expand(-1, 2)
    assert_close(rollout.advantages, expected, rtol=0, atol=2e-5)
    assert rollout.returns is None


def test_reinforce_gives_every_token_the_rewards_that_follow_it_less_their_mean() -> None:
    rollout = made.rollout([2, 1], rewards=torch.tensor([3.0, 1.0]))
    own = PpoSettings(advantage="reinforce", discount_factor=0.5, initial_policy_kl_penalty=0.1)
    rollout.logprobs = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]])
    rollout.reference = torch.tensor([[-2.0, -1.0], [-1.0, 0.0]])
    estimate(rollout, replace(own, normalize_advantages=False))
    assert rollout.kl is not None
    assert rollout.kl.tolist() == [[1, 1], [0, 0]]
    # Of the first answer's tokens: -0.1 + 0.5 * 2.9, and 3 - 0.1.
    assert_close(rollout.advantages, torch.tensor([[1.35, 2.9], [1.0, 0.0]]))
    estimate(rollout, own)
    seen = torch.tensor([1.35, 2.9, 1.0])
    expected = (seen - seen.mean()) / seen.std(correction=0)
    assert_close(rollout.advantages, torch.tensor([[*expected[:2]], [expected[2], 0.0]]))


def test_rloo_takes_a_whole_answers_distance_off_its_reward() -> None:
    rollout = made.rollout([1, 2], each=2, rewards=torch.tensor([1.0, 1.0]))
    rollout.logprobs = torch.tensor([[-1.0, 0.0], [-1.0, -2.0]])
    rollout.reference = torch.tensor([[-1.0, 0.0], [-2.0, -5.0]])
    own = PpoSettings(advantage="rloo", group=2, initial_policy_kl_penalty=0.1, kl_estimator="k1")
    estimate(rollout, own)
    assert_close(rollout.advantages, torch.tensor([[0.4, 0.0], [-0.4, -0.4]]))
    # In the loss it is no business of the rewards.
    estimate(rollout, replace(own, kl_in="loss"))
    assert not rollout.advantages.any()


def drawn(kind: str, rewards: list[float], seed: int, **changes) -> tuple[Rollout, PpoSettings]:
    """Answers of different lengths to prompts of two, with numbers as the kind has them."""
    rollout = made.rollout([1 + (i * 3) % 4 for i in range(len(rewards))], each=2)
    rollout.rewards = torch.tensor(rewards)
    rollout.logprobs = made.numbers(rollout, seed)
    rollout.reference = made.numbers(rollout, seed + 1)
    rollout.values = made.numbers(rollout, seed + 2) if kind == "gae" else None
    return rollout, PpoSettings(advantage=kind, group=2, **changes)


rewards_of = st.lists(st.sampled_from([0.0, 1.0, -2.0, math.nan]), min_size=4, max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(rewards_of, st.integers(0, 2**20))
def test_an_answer_without_reward_teaches_nothing_and_changes_no_other(kind, rewards, seed) -> None:
    rewards = rewards[: len(rewards) // 2 * 2]
    rollout, own = drawn(kind, rewards, seed)
    estimate(rollout, own)
    missing = torch.tensor(rewards).isnan()
    assert rollout.advantages.isfinite().all()
    assert not rollout.advantages[missing].any()
    assert not rollout.advantages[rollout.mask == 0].any()
    assert not learned(rollout, own)[missing].any()
    assert_close(rollout.kl, kl_estimate(rollout.logprobs, rollout.reference, own.kl_kind))
    if missing.all():
        return
    without = Rollout([a for a, gone in zip(rollout.answers, missing, strict=True) if not gone])
    width = int(without.lengths.max())
    for name in ("logprobs", "reference", "values"):
        of_all = getattr(rollout, name)
        setattr(without, name, None if of_all is None else of_all[~missing, :width])
    without.rewards = rollout.rewards[~missing]
    estimate(without, own)
    assert_close(without.advantages, rollout.advantages[~missing, :width], rtol=0, atol=1e-5)


def test_the_policy_learns_from_answers_that_end_unless_it_is_told_otherwise() -> None:
    rollout = made.rollout([2, 3], rewards=torch.tensor([1.0, 0.0]))
    rollout.answers = [rollout.answers[0], replace(rollout.answers[1], finished=False)]
    own = PpoSettings()
    estimate(rollout, own)
    assert learned(rollout, own).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert learned(rollout, PpoSettings(unfinished="learn")).tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_prompts_whose_answers_are_all_worth_the_same_teach_nothing(kind) -> None:
    """However far each of them went from the reference, and whatever whitening makes of zeros."""
    rewards = [1.0, 1.0, 0.0, 1.0, math.nan, 1.0]
    for changes in ({}, {"kl_in": "reward"}, {"normalize_advantages": True}):
        rollout, own = drawn(kind, rewards, 5, drop_even_groups=True, **changes)
        estimate(rollout, own)
        keeps = learned(rollout, own).amax(-1)
        assert keeps.tolist() == [0, 0, 1, 1, 0, 0], changes


@given(st.integers(0, 2**20))
def test_explained_variance_is_that_of_answers_with_a_reward(seed) -> None:
    rollout, own = drawn("gae", [1.0, math.nan, 0.0, 1.0], seed)
    estimate(rollout, own)
    kept = [0, 2, 3]
    rows = [(rollout.values[i, :n], rollout.returns[i, :n]) for i, n in enumerate(rollout.lengths)]
    values, returns = (torch.cat([rows[i][side] for i in kept]).numpy() for side in (0, 1))
    expected = 1 - (returns - values).var() / returns.var()
    assert explained_variance(rollout) == pytest.approx(expected, abs=1e-4)
    rollout.values = rollout.returns
    assert explained_variance(rollout) == 1.0
    rollout.returns = torch.ones_like(rollout.returns)
    assert math.isnan(explained_variance(rollout))
