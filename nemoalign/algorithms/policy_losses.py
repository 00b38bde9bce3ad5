"""Losses of a policy's and a critic's tokens, each a formula over numbers of any one shape.

Sources: PPO (arXiv 1707.06347, eq. 7) as NeMo-Aligner's ``megatron_gpt_ppo_actor.py`` and
``megatron_gpt_critic.py`` have it, DAPO's two bounds (2503.14476), dual clip (1912.09729, eq. 5),
REINFORCE, GSPO (2507.18071, eq. 5), CISPO (2506.13585, eq. 4) as NeMo-RL's ``ClippedPGLossFn`` has them.

Masks and means are the caller's. Log-probs are of the tokens that were drawn, in nats; ``old`` are
those of the policy that drew them and carry no gradient. With ``old = logprobs.detach()`` every ratio
is 1 and the gradient is REINFORCE's: the on-policy form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemoalign.algorithms.documents import spread_documents, sum_documents

if TYPE_CHECKING:
    from nemoalign.data.collate import Batch


def clipped_surrogate(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    low: float,
    high: float,
    dual: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return max(-A r, -A clip(r, 1 - low, 1 + high)) of the ratio r, and where that stands still.

    Args:
        logprobs: of the policy that learns.
        old: of the policy that drew the tokens.
        advantages: A.
        low: how far below 1 the ratio of a bad token counts.
        high: how far above 1 that of a good token does.
        dual: the most that a bad token's loss may be, in units of -A, above 1; None for no limit.

    Returns:
        The losses, and True where the ratio is so far out that they have no gradient.
    """
    ratios = (logprobs - old).exp()
    losses = torch.max(-advantages * ratios, -advantages * ratios.clamp(1 - low, 1 + high))
    is_clipped = (advantages > 0) & (ratios > 1 + high) | (advantages < 0) & (ratios < 1 - low)
    if dual is not None:
        bad = advantages < 0
        losses = torch.min(losses, -advantages * dual).where(bad, losses)
        is_clipped |= bad & (ratios > dual)
    return losses, is_clipped


def reinforce(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Return -A log p: no ratio, so nothing to clip, for the policy's own draws."""
    return -advantages * logprobs


def cispo(
    logprobs: Tensor, old: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Return -A sg(clip(r, 1 - low, 1 + high)) log p, and where the ratio r is outside the bounds.

    The weight alone is clipped: every token goes on learning.
    """
    ratios = (logprobs.detach() - old).exp()
    weights = ratios.clamp(1 - low, 1 + high)
    return -advantages * weights * logprobs, weights != ratios


def sequence_log_ratios(log_ratios: Tensor, mask: Tensor, batch: Batch) -> Tensor:
    """Return at every position the mean of its document's masked ``log_ratios``, [b, s]; 0 without any.

    Gradient flows to all tokens of the mean. Put in the place of log p - log p old, it makes the
    ratio that of whole answers, to the power of 1 over their length: GSPO's, NeMo-RL's
    ``sequence_level_importance_ratios``, for means over tokens and then over answers.
    """
    counts = sum_documents(mask.to(log_ratios.dtype), batch)
    sums = sum_documents(log_ratios.where(mask > 0, 0.0), batch)
    return spread_documents(sums / counts.clamp(min=1), batch)


def clipped_values(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Return half of max((v - R)^2, (v old + clip(v - v old, -c, c) - R)^2); with c 0 or None (v - R)^2 / 2.

    The larger of the two, so a value that went further than c from ``old`` towards its return stands
    still, and one that went away from it does not.
    """
    squares = (values - returns).square()
    if clip:
        near = old + (values - old).clamp(-clip, clip)
        squares = torch.max(squares, (near - returns).square())
    return 0.5 * squares
