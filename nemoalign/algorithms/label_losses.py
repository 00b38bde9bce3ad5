"""Losses of single labelled answers: KTO (arXiv 2402.01306, eq. 7 and 8) and unpaired APO (2408.06266).

NeMo-Aligner's form is ``megatron_gpt_kto_model.py::loss_func``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LabelOptions:
    """Inverse temperature and the weights of the two labels."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


def kto(ratios: Tensor, is_desirable: Tensor, kl: Tensor, options: LabelOptions) -> Tensor:
    """Return w (1 - sigma(beta (r - z))) of desirable answers, w (1 - sigma(beta (z - r))) of others.

    Args:
        ratios: [n], log-ratios of policy and reference, summed over the answer, in nats.
        is_desirable: [n], boolean.
        kl: z, a number of the global batch (``kl_estimate``); no gradient flows through it.
        options: beta and weights.
    """
    x = options.beta * (ratios - kl)
    good = options.desirable_weight * (-x).sigmoid()
    return good.where(is_desirable, options.undesirable_weight * x.sigmoid())


def kl_estimate(mismatched_sum: Tensor, count: Tensor) -> Tensor:
    """Return z: the mean log-ratio of mismatched rows of the global batch, then clamped at 0.

    NeMo-Aligner clamps every rank's mean before it averages, which is never lower.
    """
    return (mismatched_sum / count.clamp(min=1)).clamp(min=0)


def apo_zero_unpaired(ratios: Tensor, is_desirable: Tensor, options: LabelOptions) -> Tensor:
    """Return w (1 - sigma(beta r)) of desirable answers and w sigma(beta r) of others; needs no KL."""
    x = options.beta * ratios
    good = options.desirable_weight * (-x).sigmoid()
    return good.where(is_desirable, options.undesirable_weight * x.sigmoid())
