"""From the rewards of a rollout to advantages: of tokens by GAE, of answers by the others to their prompt.

Sources: GAE (arXiv 1506.02438, eq. 16) as NeMo-Aligner's ``ppo_utils.py`` has it, RLOO (2402.14740),
GRPO (2402.03300) as NeMo-RL's ``advantage_estimator.py`` has it, Dr. GRPO (2503.20783).

A ``mask`` [rows, s] is 1 (or True) on the tokens of an answer, which lie side by side. A missing reward
is NaN. Groups are the answers to one prompt: rows of the same number, in any order, of any size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]

SPREAD_EPSILON = 1e-6
"""Added to a standard deviation of rewards; NeMo-RL's, TRL's is 1e-4."""
VARIANCE_EPSILON = 1e-8
"""Added to a variance of tokens, before the root (NeMo-Aligner's ``normalize_tensor``)."""


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Return -coefficient KL of every token, with the score at the last one, [rows, s]; 0 off the mask.

    Args:
        scores: [rows]; of a row without any masked token it may be missing.
        kl: [rows, s], an estimate of each token's KL.
        mask: [rows, s].
        kl_coefficient: in rewards per nat.
    """
    is_answer = mask > 0
    places = torch.arange(1, mask.shape[1] + 1)
    is_last = is_answer & (places == (places * is_answer).amax(-1, keepdim=True))
    rewards = (-kl_coefficient * kl).where(is_answer, 0.0)
    return rewards + scores[:, None].where(is_last, 0.0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns of every token, [rows, s]; 0 off the mask, where nothing is read.

    Backwards through an answer, delta = r + gamma V' - V and A = delta + gamma lambda A', where V' and A'
    are the next token's, 0 after the last: an answer that was cut off ends as others do. A return is
    A + V. NeMo-Aligner goes on through the prompt, to numbers that no loss counts.

    Args:
        rewards: [rows, s].
        values: [rows, s]; the critic's, before each token.
        mask: [rows, s].
        gamma: how much a later reward counts.
        lam: lambda; at 1 returns are rewards alone, at 0 one step's and the next value.
    """
    is_answer = mask > 0
    rewards, values = (part.where(is_answer, 0.0) for part in (rewards, values))
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = (rewards + gamma * following - values).t().contiguous()  # [rows, s] -> [s, rows]
    for place in reversed(range(len(deltas) - 1)):
        deltas[place] += gamma * lam * deltas[place + 1]
    advantages = deltas.t().where(is_answer, 0.0)
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, *, scales: bool = True) -> Tensor:
    """Return masked ``values`` less their mean, over their population standard deviation; 0 off the mask.

    Over all rows given: whoever whitens a rollout needs all of it. Without ``scales`` only the mean goes.
    """
    is_counted = mask > 0
    counted = values[is_counted].double()
    if not len(counted):
        return torch.zeros_like(values)
    variance, mean = torch.var_mean(counted, correction=0)
    centered = values.double() - mean
    if scales:
        centered = centered * torch.rsqrt(variance + VARIANCE_EPSILON)
    return centered.to(values.dtype).where(is_counted, 0.0)


def leave_one_out(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Return each row's baseline: the mean reward of the valid others of its group, [rows].

    The row's own reward where there are none, which is no advantage. A row that is not valid has only
    others: the mean over all valid ones. NeMo-Aligner divides their sum by their number less 1 there,
    as if the row were one of them, and learns from it.

    Args:
        rewards: [rows]; a missing one is no other's business.
        groups: [rows], integers.
        valid: [rows], which rows others are measured by.
    """
    return _measures(rewards, groups, valid, leaves_one_out=True)[0].to(rewards.dtype)


def group_advantages(
    rewards: Tensor, groups: Tensor, valid: Tensor, *, leave_one_out: bool, scale: Scale
) -> Tensor:
    """Return each row's reward less its group's mean, over a standard deviation, [rows]; 0 if missing.

    A row whose measure has no other row than itself has the advantage 0. Deviations are unbiased, over
    n - 1; with fewer than two members, or members all alike, nothing is divided.

    Args:
        rewards: [rows].
        groups: [rows], integers.
        valid: [rows], which rows count in means and deviations.
        leave_one_out: a row is no part of its own mean and deviation (NeMo-RL's default).
        scale: ``group`` is divided by the group's deviation (GRPO), ``batch`` by that of all valid
            rewards (TRL's ``scale_rewards``), ``none`` by nothing (Dr. GRPO).
    """
    means, spreads = _measures(rewards, groups, valid, leaves_one_out=leave_one_out)
    advantages = rewards.double() - means
    if scale == "batch":
        _, spreads = _moments(*_known(rewards, valid), means[:1])
    if scale != "none":
        advantages = torch.where(spreads > 0, advantages / (spreads + SPREAD_EPSILON), advantages)
    return advantages.to(rewards.dtype).where(~rewards.isnan(), 0.0)


def _known(rewards: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rewards in fp64, 0 where they do not count, and where they do, both [rows]."""
    known = (valid > 0) & ~rewards.isnan()
    return rewards.double().where(known, 0.0), known


def _measures(
    rewards: Tensor, groups: Tensor, valid: Tensor, *, leaves_one_out: bool
) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased standard deviation of what each row is measured by, both [rows] in fp64."""
    filled, known = _known(rewards, valid)
    means, spreads = rewards.double().clone(), torch.zeros_like(filled)
    order = groups.argsort(stable=True)
    counts = groups[order].unique_consecutive(return_counts=True)[1]
    for rows in order.split(counts.tolist()):
        members = known[rows].expand(len(rows), -1)  # [n, n]: whom each row is measured by
        if leaves_one_out:
            members = members & ~torch.eye(len(rows), dtype=torch.bool)
        means[rows], spreads[rows] = _moments(filled[rows], members, means[rows])
    return means, spreads


def _moments(values: Tensor, members: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the members of ``values`` [n], both [m]; ``otherwise`` [m], 0 of none.

    ``members`` is [m, n], or [n] with m = 1.
    """
    counts = members.sum(-1)
    means = torch.where(counts > 0, (members * values).sum(-1) / counts.clamp(min=1), otherwise)
    squares = (members * (values - means[:, None]).square()).sum(-1)
    spreads = (squares / (counts - 1).clamp(min=1)).sqrt()
    # Rounding makes a little spread of equal numbers; divided by, it would be a huge advantage.
    least, most = (torch.where(members, values, end) for end in (torch.inf, -torch.inf))
    return means, spreads.where(least.amin(-1) < most.amax(-1), 0.0)
