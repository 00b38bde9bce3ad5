"""Policy and critic as algorithms: the oracles' losses with averages and masks, in any micro-batches."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from nemoalign.algorithms.ppo import (
    ADVANTAGES,
    LEARNED,
    OLD,
    REFERENCE,
    RETURNS,
    VALUED,
    VALUES_OLD,
    Critic,
    Policy,
)
from nemoalign.config.ppo import PpoSettings
from nemoalign.data.collate import IGNORED, Batch

VECTORS = Path(__file__).parents[1] / "fixtures/vectors"
PPO = json.loads((VECTORS / "ppo_losses.json").read_text())
PG = json.loads((VECTORS / "grpo_nemo_rl.json").read_text())["clipped_pg"]
MASK = torch.tensor(PPO["mask"])
NO_KL = {"initial_policy_kl_penalty": 0.0}


def rows_of(mask: torch.Tensor, **fields: torch.Tensor) -> Batch:
    """Rows below each other whose labels are where the mask is."""
    labels = torch.where(mask > 0, 1, IGNORED)
    positions = torch.arange(mask.shape[1]).expand(mask.shape)
    return Batch(mask.long(), labels, mask, positions, int(mask.numel()), fields=fields)


def mean(result) -> torch.Tensor:
    """The loss as the learner makes it: divided once."""
    return result.loss_sum / result.weight.clamp(min=1)


def value_of(result, name: str) -> float:
    metric = result.metrics[name]
    return (metric.total / metric.count).item()


@pytest.mark.parametrize("number", range(len(PPO["actor_cases"])))
def test_the_policys_loss_is_nemo_aligners(number) -> None:
    case = PPO["actor_cases"][number]
    logits = torch.tensor(PPO["logits"], requires_grad=True)
    chances = logits[:, :-1].log_softmax(-1)
    chosen = torch.tensor(PPO["tokens"])[:, 1:, None]
    logprobs = chances.gather(-1, chosen)[..., 0]
    entropies = -(chances.exp() * chances).sum(-1)
    own = PpoSettings(
        ratio_eps=case["ratio_eps"], entropy_bonus=case["entropy_bonus"], kl_in="reward"
    )
    learned = MASK * torch.tensor(case["is_end"])[:, None]
    fields = {OLD: torch.tensor(PPO["prev_logprobs"]), LEARNED: learned}
    batch = rows_of(MASK, **fields, **{ADVANTAGES: torch.tensor(PPO["advantages"])})
    policy = Policy(own)
    result = policy.loss(torch.stack([logprobs, entropies], -1), batch)
    mean(result).backward()
    assert mean(result).item() == pytest.approx(case["loss"], abs=2e-6)
    rows = logits.grad.abs().sum((1, 2)).tolist()
    assert rows == pytest.approx(case["grad_row_abs_sum"], abs=2e-6)
    assert set(result.metrics) == set(policy.metric_names)
    if all(case["is_end"]):
        assert value_of(result, "ratio") == pytest.approx(case["ppo_ratio"], abs=2e-6)
        assert value_of(result, "loss") == pytest.approx(case["loss"], abs=2e-6)
        assert value_of(result, "entropy") == pytest.approx(PPO["masked_entropy"], abs=2e-6)


@pytest.mark.parametrize("number", range(len(PPO["critic_cases"])))
def test_the_critics_loss_is_nemo_aligners_and_other_positions_count_for_nothing(number) -> None:
    case = PPO["critic_cases"][number]
    raw = torch.tensor(PPO["values"], requires_grad=True)
    values = raw[:, :-1]
    if case["standardize"]:
        values = (values - case["rew_mean"]) / case["rew_std"]
    fields = {VALUES_OLD: torch.tensor(PPO["prev_values"]), RETURNS: torch.tensor(PPO["returns"])}
    critic = Critic(PpoSettings(loss_clip_val=case["loss_clip_val"]))
    result = critic.loss(values, rows_of(MASK, **fields, **{VALUED: MASK}))
    mean(result).backward()
    assert mean(result).item() == pytest.approx(case["loss"], abs=2e-6)
    assert value_of(result, "loss") == pytest.approx(case["loss"], abs=2e-6)
    assert raw.grad.sum(1).tolist() == pytest.approx(case["grad_row_sums"], abs=2e-6)
    assert raw.grad[:, :-1][MASK == 0].abs().sum() == 0


def nemo_rl(case: dict) -> PpoSettings:
    """The settings that mean what a configuration of NeMo-RL means."""
    said = {**PG["base_config"], **case["config"]}
    kinds = {
        "disable_ppo_ratio": "reinforce",
        "use_cispo": "cispo",
        "sequence_level_importance_ratios": "gspo",
    }
    return PpoSettings(
        ratio_eps=said["ratio_clip_min"],
        ratio_eps_high=said["ratio_clip_max"],
        ratio_clip_c=said["ratio_clip_c"],
        policy_loss=next((kind for name, kind in kinds.items() if said[name]), "ppo"),
        loss_average="answers" if said["loss_type"] == "s" else "tokens",
        initial_policy_kl_penalty=said["reference_policy_kl_penalty"],
        kl_in="loss",
        kl_estimator=said["reference_policy_kl_type"],
    )


@pytest.mark.parametrize("number", range(len(PG["cases"])))
def test_every_configuration_of_nemo_rl_has_its_loss_and_gradient(number) -> None:
    case = PG["cases"][number]
    current = torch.tensor(PG["curr"], requires_grad=True)
    tokens = torch.tensor(PG["token_mask"])[:, 1:]
    learned = tokens * torch.tensor(PG["sample_mask"])[:, None]
    fields = {
        OLD: torch.tensor(PG["prev"]),
        REFERENCE: torch.tensor(PG["ref"]),
        ADVANTAGES: torch.tensor(PG["advantages"])[:, None] * tokens,
        LEARNED: learned,
    }
    policy = Policy(nemo_rl(case))
    result = policy.loss(
        torch.stack([current, torch.zeros_like(current)], -1), rows_of(tokens, **fields)
    )
    mean(result).backward()
    assert mean(result).item() == pytest.approx(case["loss"], abs=1e-5)
    assert current.grad.sum(1).tolist() == pytest.approx(case["grad"], abs=1e-5)
    assert set(result.metrics) == set(policy.metric_names)
    assert ("kl" in result.metrics) == (policy.config.initial_policy_kl_penalty > 0)


def test_the_distance_in_the_loss_has_the_gradient_that_lowers_it() -> None:
    """That of k1 would be the same everywhere, and its mean nothing."""
    now = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    ones = torch.ones(1, 2)
    for kind, expected in (
        ("k1", 1 + torch.tensor([[0.5, -1.0]])),
        ("k3", torch.tensor([[0.5, -1.0]])),
    ):
        own = PpoSettings(kl_in="loss", kl_estimator=kind, initial_policy_kl_penalty=0.1)
        fields = {ADVANTAGES: 0 * ones, LEARNED: ones, REFERENCE: torch.tensor([[-1.5, -1.0]])}
        result = Policy(own).loss(torch.stack([now, ones], -1), rows_of(ones, **fields))
        (gradient,) = torch.autograd.grad(result.loss_sum, now)
        assert_close(gradient, 0.1 * expected, msg=kind)


def test_an_entropy_bonus_raises_entropy() -> None:
    both = torch.full((1, 3, 2), -1.0, requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    own = PpoSettings(entropy_bonus=0.25, **NO_KL)
    fields = {ADVANTAGES: torch.zeros(1, 3), LEARNED: mask}
    Policy(own).loss(both, rows_of(mask, **fields)).loss_sum.backward()
    assert both.grad[0, :, 1].tolist() == [-0.25, -0.25, 0.0]
    assert both.grad[0, :, 0].abs().sum() == 0


def test_without_log_probs_of_the_writer_the_policy_is_the_writer() -> None:
    now = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    ones, advantages = torch.ones(1, 2), torch.tensor([[2.0, -1.0]])
    batch = rows_of(ones, **{ADVANTAGES: advantages, LEARNED: ones})
    result = Policy(PpoSettings(**NO_KL)).loss(torch.stack([now, ones], -1), batch)
    result.loss_sum.backward()
    assert torch.equal(now.grad, -advantages)
    for name, expected in {"ratio": 1.0, "ratio_deviation": 0.0, "clip_fraction": 0.0}.items():
        assert value_of(result, name) == expected, name


def test_metrics_say_how_far_the_policy_went() -> None:
    old = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
    now = old + torch.tensor([[1.1, 1.3, 0.7, 5.0]]).log()
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    fields = {OLD: old, ADVANTAGES: torch.tensor([[1.0, 1.0, -1.0, 1.0]]), LEARNED: mask}
    result = Policy(PpoSettings(**NO_KL)).loss(
        torch.stack([now, 0 * now], -1), rows_of(mask, **fields)
    )
    assert value_of(result, "ratio") == pytest.approx(3.1 / 3)
    assert value_of(result, "ratio_deviation") == pytest.approx(0.7 / 3)
    assert value_of(result, "clip_fraction") == pytest.approx(2 / 3)
    gone = torch.tensor([0.1 - 0.0953102, 0.3 - 0.2623643, -0.3 + 0.3566749])
    assert value_of(result, "kl_update") == pytest.approx(gone.mean().item(), abs=1e-6)


@pytest.mark.parametrize("average", ["tokens", "answers"])
def test_a_value_head_learns_beside_the_policy_by_its_own_weights(average) -> None:
    """Whatever the policy's loss is a mean over, and from answers that the policy passes over too."""
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    learned = mask * torch.tensor([[1.0], [0.0]])
    draw = torch.Generator().manual_seed(3)
    numbers = {name: torch.randn(mask.shape, generator=draw) for name in (ADVANTAGES, RETURNS)}
    numbers |= {LEARNED: learned, VALUES_OLD: torch.zeros_like(mask), VALUED: 0.25 * mask}
    output = torch.randn((*mask.shape, 3), generator=draw).requires_grad_()
    own = PpoSettings(share_trunk=True, loss_clip_val=0.0, loss_average=average, **NO_KL)
    found = Policy(own).loss(output, rows_of(mask, **numbers))
    alone = Policy(PpoSettings(loss_average=average, **NO_KL))
    policy = alone.loss(output[..., :2], rows_of(mask, **numbers))
    errors = 0.5 * (output[..., 2] - numbers[RETURNS]).square() * mask
    assert_close(found.loss_sum, policy.loss_sum + 0.25 * errors.sum())
    assert torch.equal(found.weight, policy.weight)
    assert value_of(found, "critic_loss") == pytest.approx((errors.sum() / 5).item())
    assert value_of(found, "loss") == pytest.approx(value_of(policy, "loss"))
    assert set(found.metrics) == set(Policy(own).metric_names)
