"""Which models of a run are one, which are copies, and who learns: as a run puts them together."""

import pytest
import torch

from nemoalign.model.reference import AdaptersOff, Copies, HostCopies
from nemoalign.model.reward_head import RewardHead
from nemoalign.rollouts.scoring import FunctionScorer, ModelScorer
from tests.run.roleplay import assembled, scores


def learning(chunks) -> int:
    return sum(p.numel() for chunk in chunks for p in chunk.parameters() if p.requires_grad)


def head_of(chunks) -> torch.Tensor:
    (chunk,) = chunks
    return chunk.rm_head.weight.detach().clone()


def test_a_critic_begins_as_the_reward_model_and_goes_on_judging_as_that(judged) -> None:
    with assembled(judged) as trainer:
        roles = trainer.learner.roles
        (scorer,) = roles.scorers
        assert isinstance(scorer, ModelScorer)
        assert scorer.chunks is roles.critic.modules
        assert isinstance(roles.reference, Copies)
        assert torch.equal(head_of(scorer.chunks), scores(judged / "rm"))
        with torch.no_grad():
            roles.critic.modules[0].rm_head.weight.add_(1.0)
        with scorer.in_place():
            assert torch.equal(head_of(scorer.chunks), scores(judged / "rm"))
        assert not torch.equal(head_of(scorer.chunks), scores(judged / "rm"))
        assert roles.critic.modules[0].rm_head.bias.requires_grad
        assert (roles.highest_lr, roles.looks_back) == (9e-7, True)


def test_a_further_reward_model_learns_nothing_and_has_its_weight(judged) -> None:
    reward = [judged / "rm", f"{judged / 'rm3'}:-0.25"]
    with assembled(judged, reward=reward) as trainer:
        roles = trainer.learner.roles
        first, second = roles.scorers
        assert first.chunks is roles.critic.modules
        assert (second.weight, second.name) == (-0.25, str(judged / "rm3"))
        assert learning(second.chunks) == 0
        assert learning(roles.critic.modules) > 0
        mean = scores(judged / "rm3").mean(0, keepdim=True)
        torch.testing.assert_close(head_of(second.chunks), mean)


def test_without_a_critic_a_reward_model_only_judges(judged) -> None:
    with assembled(judged, advantage="rloo") as trainer:
        roles = trainer.learner.roles
        assert roles.critic is None
        assert learning(roles.scorers[0].chunks) == 0


@pytest.mark.parametrize("source", [None, "hf"])
def test_a_critic_without_a_head_to_start_from_knows_nothing_yet(source, judged) -> None:
    critic = {} if source is None else {"critic_path": judged / source}
    with assembled(judged, reward=[f"{judged / 'length.py'}:length"], **critic) as trainer:
        roles = trainer.learner.roles
        assert isinstance(roles.scorers[0], FunctionScorer)
        (chunk,) = roles.critic.modules
        assert isinstance(chunk.rm_head, RewardHead)
        assert not chunk.rm_head.weight.any()
        assert not chunk.rm_head.bias.any()
        policy = roles.policy.modules[0].decoder.final_layernorm.weight
        assert torch.equal(chunk.decoder.final_layernorm.weight, policy)
        assert chunk.decoder.final_layernorm.weight is not policy


def test_a_critic_may_start_elsewhere_than_the_rewards(judged) -> None:
    with assembled(judged, critic_path=judged / "rm3", critic_lr=1e-3) as trainer:
        roles = trainer.learner.roles
        assert roles.scorers[0].chunks is not roles.critic.modules
        assert learning(roles.scorers[0].chunks) == 0
        mean = scores(judged / "rm3").mean(0, keepdim=True)
        torch.testing.assert_close(head_of(roles.critic.modules), mean)


def test_a_fresh_adapter_is_switched_off_for_reference_and_reward_model(judged) -> None:
    with assembled(judged, **{"model.peft.lora_tuning.adapter_dim": 2}) as trainer:
        roles = trainer.learner.roles
        assert isinstance(roles.reference, AdaptersOff)
        (scorer,) = roles.scorers
        assert scorer.chunks is roles.critic.modules
        small = learning(roles.critic.modules)
        assert learning(roles.policy.modules) < small < 20_000, "adapters, and the critic's head"


def test_a_value_head_stands_on_the_policy(judged) -> None:
    with assembled(judged, share_trunk=True) as trainer:
        roles = trainer.learner.roles
        assert roles.critic is None
        assert isinstance(roles.policy.modules[0].value_head, RewardHead)
        assert learning(roles.scorers[0].chunks) == 0


@pytest.mark.parametrize(
    ("flags", "reference", "looks_back"),
    [
        ({}, Copies, True),
        ({"initial_policy_kl_penalty": 0.0}, None, False),
        ({"initial_policy_kl_penalty": 0.0, "ppo_epochs": 2}, None, True),
        ({"kl_in": "loss"}, Copies, False),
        ({"reference_on_host": True}, HostCopies, True),
    ],
)
def test_nobody_is_asked_for_what_nothing_needs(flags, reference, looks_back, judged) -> None:
    with assembled(judged, **flags) as trainer:
        roles = trainer.learner.roles
        assert roles.reference is None if reference is None else type(roles.reference) is reference
        assert roles.looks_back is looks_back


def test_learners_take_turns_where_that_is_asked_for(judged) -> None:
    with assembled(judged, "model.ppo.offload=true") as trainer:
        assert trainer.learner.roles.offloads.keys() == {"policy", "critic"}
    with assembled(judged) as trainer:
        assert trainer.learner.roles.offloads == {}
