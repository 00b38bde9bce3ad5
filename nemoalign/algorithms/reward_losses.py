"""Losses of reward models: Bradley-Terry over pairs, and regression on several attributes.

NeMo-Aligner's forms are ``megatron_gpt_reward_model.py`` and ``megatron_gpt_regression_reward_model.py``
(HelpSteer2-Preference, arXiv 2410.01257, for the three over preference strengths).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, centering: float = 0.0
) -> Tensor:
    """Return -log sigma(chosen - rejected - margin) + centering (chosen + rejected)^2, [n]."""
    loss = -logsigmoid(chosen - rejected - margin)
    return loss + centering * (chosen + rejected).square() if centering else loss


def regression(scores: Tensor, labels: Tensor, missing: float) -> tuple[Tensor, Tensor]:
    """Return squared errors [n, attributes], 0 where a label is ``missing``, and which are not."""
    known = labels != missing
    return (scores - labels).square().where(known, 0.0), known


def graded_bradley_terry(first: Tensor, second: Tensor, strength: Tensor, kind: str) -> Tensor:
    """Return the loss of pairs whose preference has a strength, [n].

    Args:
        first: [n], scores of the first answers.
        second: [n], scores of the second ones.
        strength: [n]; below 0 the first is better, otherwise the second (0 included, as in NeMo).
        kind: ``regular_bt`` (the strength counts for nothing), ``margin_bt`` (it is the margin) or
            ``scaled_bt`` (it is the weight).
    """
    first_wins = strength < 0
    gap = (first - second).where(first_wins, second - first)
    size = strength.abs()
    if kind == "margin_bt":
        return -logsigmoid(gap - size)
    return -logsigmoid(gap) * size if kind == "scaled_bt" else -logsigmoid(gap)
