"""Losses of a policy and a critic against NeMo-Aligner's and NeMo-RL's numbers, values and gradients."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from nemoalign.algorithms.kl import kl_loss
from nemoalign.algorithms.policy_losses import (
    cispo,
    clipped_surrogate,
    clipped_values,
    reinforce,
    sequence_log_ratios,
)
from nemoalign.data.collate import collate, collate_pack
from nemoalign.parallel.entropy import vocab_parallel_entropy
from nemoalign.parallel.logprobs import vocab_parallel_logprobs
from tests.algorithms.test_documents import EOS, samples

VECTORS = Path(__file__).parents[1] / "fixtures/vectors"
PPO = json.loads((VECTORS / "ppo_losses.json").read_text())
PG = json.loads((VECTORS / "grpo_nemo_rl.json").read_text())["clipped_pg"]
MASK = torch.tensor(PPO["mask"])


def _mean(values, mask):
    return (values * mask).sum() / mask.sum().clamp(min=1)


def _policy():
    """NeMo-Aligner's logits as a leaf, with log-probs and entropies of the next tokens."""
    logits = torch.tensor(PPO["logits"], requires_grad=True)
    tokens, width = torch.tensor(PPO["tokens"]), logits.shape[-1]
    used = logits[:, :-1]
    logprobs = vocab_parallel_logprobs(used, tokens[:, 1:], width)
    entropies = vocab_parallel_entropy(used.flatten(0, 1), width).view(logprobs.shape)
    return logits, logprobs, entropies


@pytest.mark.parametrize("number", range(len(PPO["actor_cases"])))
def test_the_policys_loss_and_gradient_are_nemo_aligners(number) -> None:
    case = PPO["actor_cases"][number]
    logits, logprobs, entropies = _policy()
    assert_close(logprobs.detach(), torch.tensor(PPO["logprobs"]), rtol=0, atol=2e-6)
    learned = MASK * torch.tensor(case["is_end"])[:, None]
    old, advantages = torch.tensor(PPO["prev_logprobs"]), torch.tensor(PPO["advantages"])
    losses, _ = clipped_surrogate(logprobs, old, advantages, case["ratio_eps"], case["ratio_eps"])
    bonus = case["entropy_bonus"] * _mean(entropies, learned)
    loss = _mean(losses, learned) - bonus
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=2e-6)
    assert logits.grad is not None
    rows = logits.grad.abs().sum((1, 2)).tolist()
    assert rows == pytest.approx(case["grad_row_abs_sum"], abs=2e-6)
    # NeMo-Aligner's is not a number where no answer ended.
    if case["scaled_entropy"] != "nan":
        assert bonus.item() == pytest.approx(case["scaled_entropy"], abs=2e-6)
    ratios = (logprobs.detach() - old).exp()
    assert _mean(ratios, MASK).item() == pytest.approx(case["ppo_ratio"], abs=2e-6)
    clamped = ratios.clamp(1 - case["ratio_eps"], 1 + case["ratio_eps"])
    assert _mean(clamped, MASK).item() == pytest.approx(case["ppo_ratio_clamped"], abs=2e-6)


@pytest.mark.parametrize("number", range(len(PPO["reinforce"]["cases"])))
def test_reinforce_is_nemo_aligners(number) -> None:
    """It learns from answers that did not end, unless none did; which ones count is the caller's mask."""
    case, logprobs = PPO["reinforce"]["cases"][number], _policy()[1]
    advantages = torch.tensor(PPO["reinforce"]["rewards_with_kl"]) - torch.tensor(
        PPO["reinforce"]["baseline"]
    )
    mask = MASK if any(case["is_end"]) else torch.zeros_like(MASK)
    loss = _mean(reinforce(logprobs, advantages[:, None]), mask)
    assert loss.item() == pytest.approx(case["loss"], abs=2e-6)


@pytest.mark.parametrize("number", range(len(PPO["critic_cases"])))
def test_the_critics_loss_and_gradient_are_nemo_aligners(number) -> None:
    """Where its rewards are standardised, old values and returns have been before; new ones are here."""
    case = PPO["critic_cases"][number]
    raw = torch.tensor(PPO["values"], requires_grad=True)
    values = raw[:, :-1]
    if case["standardize"]:
        values = (values - case["rew_mean"]) / case["rew_std"]
    old, returns = torch.tensor(PPO["prev_values"]), torch.tensor(PPO["returns"])
    loss = _mean(clipped_values(values, old, returns, case["loss_clip_val"]), MASK)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=2e-6)
    assert raw.grad is not None
    assert raw.grad.sum(1).tolist() == pytest.approx(case["grad_row_sums"], abs=2e-6)
    assert torch.equal(
        clipped_values(values, old, returns, None), clipped_values(values, old, returns, 0)
    )


def _surrogate(current, options, mask, batch):
    """The per-token losses of one of NeMo-RL's configurations."""
    old, advantages = torch.tensor(PG["prev"]), torch.tensor(PG["advantages"])[:, None]
    low, high = options["ratio_clip_min"], options["ratio_clip_max"]
    if options["disable_ppo_ratio"]:
        return reinforce(current, advantages)
    if options["use_cispo"]:
        return cispo(current, old, advantages, low, high)[0]
    if options["sequence_level_importance_ratios"]:
        current = old + sequence_log_ratios(current - old, mask, batch)
    return clipped_surrogate(current, old, advantages, low, high, options["ratio_clip_c"])[0]


class _Rows:
    """As much of a padded batch as sums over its rows ask for."""

    documents = None
    tokens = torch.zeros(3, 5)


@pytest.mark.parametrize("number", range(len(PG["cases"])))
def test_every_configuration_of_nemo_rl_has_its_loss_and_gradient(number) -> None:
    case = PG["cases"][number]
    options = {**PG["base_config"], **case["config"]}
    current = torch.tensor(PG["curr"], requires_grad=True)
    tokens, rows = torch.tensor(PG["token_mask"])[:, 1:], torch.tensor(PG["sample_mask"])

    def average(values):
        if options["loss_type"] == "s":
            means = (values * tokens).sum(1) / tokens.sum(1)
            return (means * rows).sum() / rows.sum()
        return _mean(values, tokens * rows[:, None])

    loss = average(_surrogate(current, options, tokens, _Rows()))
    penalty = options["reference_policy_kl_penalty"]
    if penalty:
        kinds = options["reference_policy_kl_type"]
        distance = average(kl_loss(current, torch.tensor(PG["ref"]), kinds))
        assert distance.item() == pytest.approx(case["kl_penalty"], abs=1e-5)
        loss = loss + penalty * distance
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-5)
    assert current.grad is not None
    assert current.grad.sum(1).tolist() == pytest.approx(case["grad"], abs=1e-5)


def test_exact_cases_of_other_projects() -> None:
    """NeMo-RL's ``test_loss_functions.py`` and torchtune's PPO tests."""
    old = torch.zeros(3)
    logprobs = torch.tensor([0.5, 1.0, 1.5]).log()
    losses, is_clipped = clipped_surrogate(logprobs, old, torch.tensor([1.0, -1.0, 2.0]), 0.2, 0.2)
    assert losses.tolist() == pytest.approx([-0.5, 1.0, -2.4])
    assert losses.mean().item() == pytest.approx(-0.6333, abs=1e-4)
    assert is_clipped.tolist() == [False, False, True]
    one = torch.ones(1)
    assert clipped_surrogate(one, 0 * one, one, 0.2, 0.2)[0].item() == pytest.approx(-1.2)
    assert clipped_surrogate(-one, 0 * one, one, 0.2, 0.2)[0].item() == pytest.approx(-1 / math.e)


numbers = st.floats(-3, 3, allow_subnormal=False)
tokens_of = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6)


@given(tokens_of, st.floats(0.05, 0.9), st.floats(0.05, 2), st.none() | st.floats(3.0, 6))
def test_a_clipped_token_is_exactly_one_without_gradient(tokens, low, high, dual) -> None:
    logprobs, old, advantages = torch.tensor(tokens, dtype=torch.float64).unbind(-1)
    logprobs = logprobs.clone().requires_grad_()
    losses, is_clipped = clipped_surrogate(logprobs, old, advantages, low, high, dual)
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    ratios = (logprobs - old).exp()
    expected = (-advantages * ratios).where(~is_clipped, 0.0)
    assert_close(gradient, expected.detach())
    plain = -advantages * ratios
    assert_close(losses.where(~is_clipped, 0.0), plain.where(~is_clipped, 0.0))
    if dual is not None:
        assert (losses <= (-advantages * dual).clamp(min=0) + 1e-12).all()
    else:
        assert (losses >= plain - 1e-12).all()


@given(tokens_of)
def test_on_policy_everything_teaches_as_reinforce_does(tokens) -> None:
    logprobs, _, advantages = torch.tensor(tokens, dtype=torch.float64).unbind(-1)
    logprobs = logprobs.clone().requires_grad_()
    old = logprobs.detach()
    losses, is_clipped = clipped_surrogate(logprobs, old, advantages, 0.2, 0.28, 3.0)
    weighted, is_outside = cispo(logprobs, old, advantages, 0.2, 0.28)
    assert not (is_clipped | is_outside).any()
    assert torch.equal(losses.detach(), -advantages)
    for found in (losses, weighted, reinforce(logprobs, advantages)):
        assert torch.equal(torch.autograd.grad(found.sum(), logprobs)[0], -advantages)


def test_cispo_goes_on_teaching_clipped_tokens() -> None:
    logprobs = torch.tensor([2.0, 0.1, -2.0], requires_grad=True)
    losses, is_outside = cispo(logprobs, torch.zeros(3), torch.ones(3), 0.2, 0.28)
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    assert gradient.tolist() == pytest.approx([-1.28, -math.exp(0.1), -0.8])
    assert is_outside.tolist() == [True, False, True]


@given(tokens_of, st.floats(0.01, 2))
def test_a_value_stands_still_only_where_it_went_far_towards_its_return(tokens, clip) -> None:
    values, old, returns = torch.tensor(tokens, dtype=torch.float64).unbind(-1)
    values = values.clone().requires_grad_()
    losses = clipped_values(values, old, returns, clip)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    near = old + (values - old).clamp(-clip, clip)
    still = (near - returns).abs() > (values - returns).abs() + 1e-9
    assert_close(gradient.where(~still, 0.0), (values - returns).detach().where(~still, 0.0))
    assert not gradient[still].any()
    assert (losses >= 0.5 * (values - returns).square() - 1e-12).all()


@pytest.mark.parametrize("join", [collate, collate_pack])
def test_sequence_ratios_are_means_of_masked_tokens_padded_and_packed(join) -> None:
    batch = join(samples(), eos_id=EOS)
    mask = batch.loss_mask
    # What is no answer's token must not count, whatever is there.
    ratios = (batch.labels / 7).where(mask > 0, torch.inf).requires_grad_()
    found = sequence_log_ratios(ratios, mask, batch)
    means, start = [], 0
    for number, sample in enumerate(samples()):
        learned = sample.tokens[1:][sample.loss_mask[1:]]
        means.append(float(learned.mean() / 7))
        length = len(sample.tokens) - 1
        row = found[number] if join is collate else found[0, start : start + length]
        assert row[:length].tolist() == pytest.approx([means[-1]] * length)
        start += length
    (gradient,) = torch.autograd.grad((found * mask).sum(), ratios)
    assert_close(gradient, mask)
