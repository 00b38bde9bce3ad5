"""Who looks back at a rollout, what they say of it, and what memory they take."""

import re

import pytest
import torch
from torch.testing import assert_close

from nemoalign.config.ppo import PpoSettings
from nemoalign.parallel.layout import ParallelLayout
from tests.model import tiny
from tests.rollouts import made, stage


def looked_back(roles, rollout, layout=stage.ONE):
    roles.look_back(stage.passes_of(rollout, stage.batching_of(layout)))
    return rollout


def rollout():
    return made.rollout([3, 6, 1], prompts=(4, 7))


def values_of(of) -> torch.Tensor:
    weight, bias = stage.head_of(seed=3)
    rows = [(states @ weight.t() + bias)[:, 0] for states in stage.hidden_of(of, seed=3)]
    return before_tokens(of, rows)


def before_tokens(of, rows) -> torch.Tensor:
    return of.padded([row[-1 - n : -1] for row, n in zip(rows, of.lengths.tolist(), strict=True)])


def _after_a_move(layout: ParallelLayout) -> list[torch.Tensor]:
    """Runs on each rank: what is said once the policy has moved away from its start."""
    with stage.roles(layout, PpoSettings()) as roles:
        with torch.no_grad():
            for chunk in roles.policy.modules:
                for name, parameter in chunk.named_parameters():
                    if "linear_fc2" in name:
                        parameter.zero_()
        of = looked_back(roles, rollout(), layout)
        return [of.logprobs, of.reference, of.values]


def check(found: list[torch.Tensor]) -> None:
    logprobs, reference, values = found
    of, moved = rollout(), tiny.llama()
    assert_close(reference, stage.logprobs_of(of), rtol=0, atol=2e-5)
    assert_close(values, values_of(of), rtol=0, atol=2e-5)
    with torch.no_grad():
        for layer in moved.model.layers:
            layer.mlp.down_proj.weight.zero_()
    assert_close(logprobs, stage.logprobs_of(of, llama=moved), rtol=0, atol=2e-5)
    assert (logprobs - reference).abs().max() > 1e-2


def test_the_policy_its_start_and_the_critic_each_say_their_own() -> None:
    check(_after_a_move(stage.ONE))


@pytest.mark.dist
@pytest.mark.parametrize("layout", stage.LAYOUTS.values(), ids=list(stage.LAYOUTS))
def test_they_say_it_on_every_rank_of_every_layout(layout, two_ranks) -> None:
    for found in two_ranks.run(_after_a_move, layout):
        check(found)


def test_looking_back_changes_nobody() -> None:
    with stage.roles(stage.ONE, PpoSettings()) as roles:
        learners = (roles.policy, roles.critic)
        before = [p.clone() for one in learners for c in one.modules for p in c.parameters()]
        looked_back(roles, rollout())
        after = [p for one in learners for c in one.modules for p in c.parameters()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)


def test_who_is_not_asked_says_nothing() -> None:
    own = PpoSettings(advantage="rloo", initial_policy_kl_penalty=0.0)
    with stage.roles(stage.ONE, own) as roles:
        of = looked_back(roles, rollout())
        assert of.logprobs is not None
        assert (of.reference, of.values) == (None, None)
        alone = stage.replace(roles, looks_back=False)
        assert looked_back(alone, rollout()).logprobs is None


def test_a_head_on_the_policy_says_its_values_in_the_policys_pass() -> None:
    with stage.roles(stage.ONE, PpoSettings(share_trunk=True)) as roles:
        assert roles.critic is None
        (chunk,) = roles.policy.modules
        weight, bias = stage.head_of(seed=3)
        with torch.no_grad():
            chunk.value_head.weight.copy_(weight)
            chunk.value_head.bias.copy_(bias + 1)
        of = looked_back(roles, rollout())
    rows = [(states @ weight.t() + bias + 1)[:, 0] for states in stage.hidden_of(of)]
    assert_close(of.logprobs, stage.logprobs_of(of), rtol=0, atol=2e-5)
    assert_close(of.values, before_tokens(of, rows), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_is_known_and_no_part_of_looking_back(dropout) -> None:
    with stage.roles(stage.ONE, PpoSettings(), dropout=dropout) as roles:
        assert roles.drops_out is (dropout > 0)
        of = looked_back(roles, rollout())
    assert_close(of.logprobs, stage.logprobs_of(of), rtol=0, atol=2e-5)


def test_memory_is_told_by_role() -> None:
    with stage.roles(stage.ONE, PpoSettings()) as roles:
        arch = tiny.architecture(tiny.llama().config)
        lines = roles.memory(1 << 15, arch, stage.ONE)
        counts = [
            sum(p.numel() for chunk in one.modules for p in chunk.parameters())
            for one in (roles.policy, roles.critic)
        ]
        learned = [one.trained_parameters() for one in (roles.policy, roles.critic)]
    numbers = [[float(n.replace(",", "")) for n in re.findall(r"[\d,]+\.\d+", line)] for line in lines]  # fmt: skip
    assert "policy" in lines[0]
    assert "critic" in lines[1]
    for role in (0, 1):
        weights, learning = 4 * counts[role] / 2**30, 12 * learned[role] / 2**30
        assert numbers[role] == pytest.approx([weights, learning], abs=0.006)
    # Keys and values of 64 positions, 2 layers, 2 groups, 16 wide, 4 bytes.
    assert numbers[2] == [(2 << 15) * 64 * 2 * 2 * 16 * 4 / 2**30]
