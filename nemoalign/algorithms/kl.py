"""Estimates of a token's KL divergence between two policies, from the log-probs of the token drawn.

Source: J. Schulman, "Approximating KL Divergence" (k1, k2, k3); ``abs`` is NeMo-Aligner's
``use_absolute_kl`` (``ppo_utils.py``), the clamps and the gradient of ``kl_loss`` are NeMo-RL's
``calculate_kl`` and ``ClippedPGLossFn``. With d = log p - log p reference of a token drawn from p, in
nats, k1 = d and k3 = exp(-d) - 1 + d have KL(p || reference) as their mean; k3 is never negative.
k2 = d^2 / 2 is its second order, abs = |d| only grows with it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_estimate(
    logprobs: Tensor,
    reference: Tensor,
    kind: str,
    *,
    input_clamp: float | None = None,
    output_clamp: float | None = None,
) -> Tensor:
    """Return the estimate of each token, in the shape given.

    A number to watch or to take from rewards. Its own derivative is no policy gradient: that of k1
    has the mean 0, that of k3 pulls towards KL(reference || p); ``kl_loss`` is to be learned from.

    Args:
        logprobs: of the policy p that drew the tokens.
        reference: of the other policy, for the same tokens.
        kind: ``k1``, ``abs``, ``k2`` or ``k3``.
        input_clamp: the largest size of d; None for any.
        output_clamp: the largest size of the estimate; None for any.
    """
    difference = logprobs - reference
    if input_clamp is not None:
        difference = difference.clamp(-input_clamp, input_clamp)
    return _clamped(_estimate(difference, kind), output_clamp)


def kl_loss(
    logprobs: Tensor,
    reference: Tensor,
    kind: str,
    *,
    input_clamp: float | None = 20.0,
    output_clamp: float | None = 10.0,
) -> Tensor:
    """Return the same numbers as ``kl_estimate``, with the gradient that lowers the divergence.

    The estimate is weighted by exp(log p - sg(log p)), which is 1 and brings in that tokens are drawn
    from p: the gradient is that of the estimate plus the estimate times that of log p (arXiv
    2506.09477). Its mean is the gradient of KL(p || reference) for k1 and k3, if the tokens are p's own;
    of k3 it is d times the gradient of log p, token by token. Where a clamp holds there is none.
    """
    difference = logprobs - reference
    weights = (logprobs - logprobs.detach()).exp()
    if input_clamp is not None:
        weights = weights.where(difference.abs() <= input_clamp, 1.0)
        difference = difference.clamp(-input_clamp, input_clamp)
    return _clamped(weights * _estimate(difference, kind), output_clamp)


def _estimate(difference: Tensor, kind: str) -> Tensor:
    if kind == "k1":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "k2":
        return 0.5 * difference.square()
    assert kind == "k3", f"no estimate is called {kind!r}"
    return torch.expm1(-difference) + difference


def _clamped(values: Tensor, limit: float | None) -> Tensor:
    return values if limit is None else values.clamp(-limit, limit)
