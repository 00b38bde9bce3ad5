"""Rewards to advantages and returns, as ``--advantage`` says; the same on every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nemoalign.algorithms.advantages import (
    gae,
    group_advantages,
    leave_one_out,
    token_rewards,
    whiten,
)
from nemoalign.algorithms.kl import kl_estimate

if TYPE_CHECKING:
    from torch import Tensor

    from nemoalign.config.ppo import PpoSettings
    from nemoalign.rollouts.answers import Rollout


def estimate(rollout: Rollout, own: PpoSettings) -> None:
    """Set the KL, advantages and returns of every answer token, [answers, longest].

    An answer without a reward has neither; nothing is learned from it.
    """
    mask = rollout.mask * rollout.rewarded[:, None]
    rewards = rollout.rewards.nan_to_num(0.0)
    if rollout.reference is not None and rollout.logprobs is not None:
        rollout.kl = kl_estimate(rollout.logprobs, rollout.reference, own.kl_kind) * rollout.mask
    kl = torch.zeros_like(mask) if rollout.kl is None else rollout.kl
    penalty = own.initial_policy_kl_penalty if own.kl_place == "reward" else 0.0
    if own.advantage in ("gae", "reinforce"):
        values = torch.zeros_like(mask) if rollout.values is None else rollout.values
        discount = own.gae_lambda if own.advantage == "gae" else 1.0
        each = token_rewards(rewards, kl, mask, penalty)
        advantages, rollout.returns = gae(each, values * mask, mask, own.discount_factor, discount)
    else:
        # arXiv 2402.14740: the whole answer is one action, its KL the sum over its tokens.
        held = rewards - penalty * (kl * mask).sum(-1)
        advantages = _of_answers(held, rollout, own)[:, None] * mask
    advantages = advantages * mask
    rollout.advantages = whiten(advantages, mask) * mask if own.whitens else advantages


def _of_answers(rewards: Tensor, rollout: Rollout, own: PpoSettings) -> Tensor:
    """Return the advantage of each answer over the others to its prompt, [answers]."""
    groups, valid = rollout.groups, rollout.rewarded
    if own.advantage == "rloo":
        return (rewards - leave_one_out(rewards, groups, valid)) * valid
    return group_advantages(
        rewards, groups, valid, leave_one_out=own.leave_one_out, scale=own.scale_rewards
    )


def learned(rollout: Rollout, own: PpoSettings) -> Tensor:
    """Return 1 for tokens that the policy learns from, [answers, longest]."""
    keeps = rollout.rewarded.clone()
    if own.unfinished == "mask":
        keeps &= rollout.finished
    if own.drop_even_groups:
        keeps &= uneven(rollout)
    return rollout.mask * keeps[:, None]


def uneven(rollout: Rollout) -> Tensor:
    """Return True for answers to prompts whose answers are not all worth the same, [answers]."""
    found = torch.zeros(len(rollout.answers), dtype=torch.bool)
    for group in rollout.groups.unique():
        members = (rollout.groups == group) & rollout.rewarded
        rewards = rollout.rewards[members]
        found |= members & bool(len(rewards) and (rewards != rewards[0]).any())
    return found


def explained_variance(rollout: Rollout) -> float:
    """Return which share of the returns' variance the values knew before; NaN where returns do not vary."""
    assert rollout.values is not None, "a critic looked back"
    assert rollout.returns is not None, "estimated before"
    real = (rollout.mask * rollout.rewarded[:, None]) > 0
    returns, values = rollout.returns[real].double(), rollout.values[real].double()
    spread = returns.var(correction=0) if len(returns) else 0
    return float(1 - (returns - values).var(correction=0) / spread) if spread else torch.nan
