"""Advantages against NeMo-Aligner's and NeMo-RL's numbers, and against their definitions."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from nemoalign.algorithms.advantages import (
    gae,
    group_advantages,
    leave_one_out,
    token_rewards,
    whiten,
)
from nemoalign.algorithms.kl import kl_estimate

VECTORS = Path(__file__).parents[1] / "fixtures/vectors"
GAE = json.loads((VECTORS / "gae.json").read_text())
GRPO = json.loads((VECTORS / "grpo_nemo_rl.json").read_text())


def _close(found, expected, atol=2e-6):
    assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=0, atol=atol)


def _mask(prompts, responses, width):
    """NeMo-Aligner's layout: place t tells of token t + 1, lengths count prompt and answer."""
    places = torch.arange(width)
    ends = [(torch.tensor(lengths) - 1)[:, None] for lengths in (prompts, responses)]
    return ((places >= ends[0]) & (places < ends[1])).float()


@pytest.mark.parametrize("number", range(len(GAE["cases"])))
def test_advantages_returns_and_rewards_are_nemo_aligners(number) -> None:
    """On the answers: its advantages go on through the prompt, its rewards through the padding."""
    case = GAE["cases"][number]
    logprobs, initial, values = (
        torch.tensor(GAE[name]) for name in ("logprobs", "init_logprobs", "values")
    )
    mask = _mask(GAE["prompt_lengths"], GAE["response_lengths"], values.shape[1])
    _close(mask, GAE["mask"], 0)
    kl = kl_estimate(logprobs, initial, "abs" if case["use_absolute_kl"] else "k1")
    rewards = token_rewards(torch.tensor(GAE["rewards"]), kl, mask, case["kl_penalty"])
    advantages, returns = gae(rewards, values, mask, case["discount"], case["gae_lambda"])
    _close(advantages, torch.tensor(case["advantages"]) * mask)
    _close(returns, torch.tensor(case["returns"]) * mask)
    if "rewards_with_kl" in case:
        _close(rewards, torch.tensor(case["rewards_with_kl"]) * mask)
        _close(whiten(advantages, mask), torch.tensor(case["normalized_advantages"]) * mask)


def test_gae_of_other_projects() -> None:
    """NeMo-Aligner's ``ppo_utils_test.py``, torchtune's PPO tests, NeMo-RL's estimator."""
    case = GAE["unit_test_gae"]
    rewards, values = (torch.tensor([case[name]]).float() for name in ("rewards", "values"))
    found = gae(rewards, values, torch.ones(1, 4), case["discount"], case["gae_lambda"])
    for ours, name in zip(found, ("advantages", "returns"), strict=True):
        assert ours.tolist() == [case[name]]

    same = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    _, returns = gae(same, same, torch.ones(1, 4), 0.9, 0.95)
    _close(returns, [[0.9**3 * 0.95**2, 0.9**2 * 0.95, 0.9, 1.0]])

    mask, values = torch.tensor(GRPO["mask"]), torch.tensor(GRPO["values"])
    rewards = token_rewards(torch.tensor(GRPO["rewards"]), torch.zeros_like(mask), mask, 0.0)
    advantages, returns = gae(rewards, values, mask, 1.0, 0.95)
    _close(returns, torch.tensor(GRPO["gae_returns"]) * mask, 1e-5)
    # NeMo-RL whitens by the sample variance, NeMo-Aligner and we by the population's.
    sample = math.sqrt((mask.sum() - 1) / mask.sum())
    _close(whiten(advantages, mask) * sample, torch.tensor(GRPO["gae_advantages"]) * mask, 1e-5)


def test_rewards_of_other_projects() -> None:
    """NeMo-Aligner's score at the last token of lengths 5 and 8; torchtune's penalty and score."""
    mask, kl = _mask([2, 3], [5, 8], 9), torch.rand(2, 9)
    found = token_rewards(torch.tensor([3.0, -2.0]), kl, mask, 0.1)
    expected = -0.1 * kl
    expected[0, 3] += 3
    expected[1, 6] -= 2
    _close(found, expected * mask)
    kl = kl_estimate(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.2, 0.3, 0.4]]), "k1")
    _close(token_rewards(torch.ones(1), kl, torch.ones(1, 3), 0.5), [[0.05, 0.05, 1.05]])


def test_a_missing_score_is_nobodys_without_tokens_and_not_a_number_with_them() -> None:
    mask = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    scores, none = torch.tensor([2.0, math.nan]), torch.zeros(2, 3)
    assert token_rewards(scores, none, mask, 0.1).tolist() == [[0, 0, 2], [0, 0, 0]]
    assert token_rewards(scores.flip(0), none, mask, 0.1)[0].isnan().tolist() == [
        False,
        False,
        True,
    ]
    unread = torch.full((2, 3), math.nan).where(mask == 0, 1.0)
    for found in gae(unread, unread, mask, 1.0, 0.9):
        assert found.isfinite().all()


numbers = st.floats(-4, 4, width=32)
answers = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6)


@given(answers, st.integers(0, 3), st.integers(0, 3), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_its_definition_wherever_the_answer_lies(answer, before, after, gamma, lam) -> None:
    rewards, values = torch.tensor(answer, dtype=torch.float64).unbind(-1)

    def advantage(place):
        """Of one token, from the later ones."""
        if place == len(answer):
            return 0.0
        later = values[place + 1] if place + 1 < len(answer) else 0.0
        return rewards[place] + gamma * (later + lam * advantage(place + 1)) - values[place]

    def padded(row, filler=7.0):
        return torch.nn.functional.pad(row, (before, after), value=filler)[None]

    mask = padded(torch.ones(len(answer)), 0.0)
    found, returns = gae(padded(rewards), padded(values), mask, gamma, lam)
    expected = torch.stack([torch.as_tensor(advantage(t)) for t in range(len(answer))])
    assert_close(found[mask > 0], expected)
    assert_close(returns[mask > 0], expected + values)
    assert not found[mask == 0].any()
    if lam == 1:
        assert_close(returns[0, before], sum(gamma**t * r for t, r in enumerate(rewards)))


def test_whitening_is_by_the_population_and_leaves_the_rest_zero() -> None:
    values, mask = torch.arange(1.0, 6)[None], torch.tensor([[1, 1, 1, 0, 0]])
    _close(whiten(values, mask), [[-math.sqrt(1.5), 0, math.sqrt(1.5), 0, 0]])
    assert whiten(values, mask, scales=False).tolist() == [[-1, 0, 1, 0, 0]]
    assert not whiten(values, torch.zeros(1, 5)).any()
    assert not whiten(torch.full((3, 4), 0.1), torch.ones(3, 4)).any()


def test_baselines_are_nemo_aligners_but_for_a_row_that_did_not_end() -> None:
    case = GAE["rloo"]
    groups, valid = torch.tensor(case["prompts"]) @ torch.tensor([0, 1]), torch.tensor(case["mask"])
    found = leave_one_out(torch.tensor(case["rewards"]).float(), groups, valid)
    expected = torch.tensor(case["baseline"])
    _close(found[:-1], expected[:-1])
    # It is measured by three rows, whose sum NeMo-Aligner divides by two.
    assert case["mask"][-1] == 0
    assert found[-1].item() == pytest.approx((2 + 7 - 1) / 3)
    assert expected[-1].item() == (2 + 7 - 1) / 2


@pytest.mark.parametrize("number", range(len(GRPO["grpo"])))
def test_group_advantages_are_nemo_rls(number) -> None:
    case, rewards = GRPO["grpo"][number], torch.tensor(GRPO["rewards"])
    groups, valid = torch.tensor(GRPO["prompts"])[:, 0], torch.ones(len(rewards))
    scale = "group" if case["normalize"] else "none"
    found = group_advantages(
        rewards, groups, valid, leave_one_out=case["leave_one_out"], scale=scale
    )
    _close(found, case["advantages"], 1e-5)
    if case["leave_one_out"]:
        _close(leave_one_out(rewards, groups, valid), case["baseline"], 1e-5)


def test_reinforce_plus_plus_is_the_groups_mean_and_then_the_rollouts() -> None:
    mask, rewards = torch.tensor(GRPO["mask"]), torch.tensor(GRPO["rewards"])
    groups, valid = torch.tensor(GRPO["prompts"])[:, 0], torch.ones(len(rewards))
    each = group_advantages(rewards, groups, valid, leave_one_out=False, scale="none")
    found = whiten(each[:, None].expand(mask.shape), mask)
    _close(found, torch.tensor(GRPO["reinforce_pp"]) * mask, 1e-5)


def test_leaving_one_out_of_mean_and_deviation_as_nemo_rls_own_tests() -> None:
    rewards, groups = torch.arange(1.0, 7), torch.tensor([0, 0, 0, 1, 1, 1])
    valid = torch.ones(6)
    baselines = torch.tensor([2.5, 2, 1.5, 5.5, 5, 4.5])
    _close(leave_one_out(rewards, groups, valid), baselines)
    found = group_advantages(rewards, groups, valid, leave_one_out=True, scale="group")
    spreads = torch.tensor([0.7071068, 1.4142136, 0.7071068] * 2)
    _close(found, (rewards - baselines) / (spreads + 1e-6), 1e-5)
    pair = group_advantages(rewards[:2], groups[:2], valid[:2], leave_one_out=True, scale="group")
    assert pair.tolist() == [-1, 1]


rows = st.lists(st.tuples(numbers, st.integers(0, 3), st.booleans()), min_size=1, max_size=12)
ways = st.tuples(st.booleans(), st.sampled_from(["group", "batch", "none"]))


def _members(row, everybody, own_too):
    """Rewards of the valid rows of one's group."""
    return [
        reward
        for place, (reward, group, is_valid) in enumerate(everybody)
        if is_valid and group == everybody[row][1] and (own_too or place != row)
    ]


@given(rows, ways)
def test_group_advantages_are_their_definition_in_any_order(everybody, way) -> None:
    leaves_out, scale = way
    rewards, groups, valid = (torch.tensor(column) for column in zip(*everybody, strict=True))
    rewards = rewards.double()
    found = group_advantages(rewards, groups, valid, leave_one_out=leaves_out, scale=scale)
    for row, reward in enumerate(rewards):
        members = torch.tensor(_members(row, everybody, not leaves_out)).double()
        expected = reward - members.mean() if len(members) else torch.zeros(())
        measured = rewards[valid] if scale == "batch" else members
        if scale != "none" and len(measured.unique()) > 1:
            expected = expected / (measured.std() + 1e-6)
        assert_close(found[row], expected.double(), rtol=1e-6, atol=1e-9)
    order = torch.arange(len(rewards)).flip(0)
    moved = (part[order] for part in (rewards, groups + 5, valid))
    again = group_advantages(*moved, leave_one_out=leaves_out, scale=scale)
    assert_close(again, found[order], rtol=1e-9, atol=1e-12)


@given(rows, ways)
def test_a_missing_reward_is_as_if_the_row_were_not_there(everybody, way) -> None:
    rewards, groups, valid = (torch.tensor(column) for column in zip(*everybody, strict=True))
    options = {"leave_one_out": way[0], "scale": way[1]}
    missing = torch.cat([rewards, torch.full((2,), math.nan)])
    joined = torch.cat([groups, groups[:1], groups.new_tensor([9])])
    found = group_advantages(missing, joined, torch.cat([valid, valid.new_ones(2)]), **options)
    assert_close(found[:-2], group_advantages(rewards, groups, valid, **options))
    assert found[-2:].tolist() == [0, 0]


@given(numbers, st.integers(2, 9), ways)
def test_answers_that_are_all_alike_teach_nothing(reward, count, way) -> None:
    rewards, groups = torch.full((count,), reward + 0.1).double(), torch.zeros(count)
    options = {"leave_one_out": way[0], "scale": way[1]}
    found = group_advantages(rewards, groups, torch.ones(count), **options)
    assert found.abs().max() < 1e-12


def test_equal_others_are_no_spread_however_they_round() -> None:
    rewards = torch.tensor([1.0] + [0.1] * 10, dtype=torch.float64)
    groups, valid = torch.zeros(11, dtype=torch.int), torch.ones(11)
    found = group_advantages(rewards, groups, valid, leave_one_out=True, scale="group")
    assert found[0].item() == pytest.approx(0.9)
