"""What losses of preference pairs are computed from, and the numbers they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


@dataclass(frozen=True)
class PairOptions:
    """What the formulas of one run share."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    """The chance that a label is wrong."""
    average: bool = False
    """Divide every log-ratio by its answer's tokens."""
    reward_scale: float = 1.0
    """RPO: what the rows' rewards are multiplied by."""
    divergence: Divergence = "reverse_kl"
    alpha: float = 0.5
    """Of the alpha divergence."""
    discopop_tau: float = 0.05
    simpo_gamma: float = 0.5


@dataclass(frozen=True)
class Pairs:
    """``n`` pairs, every tensor [n] and fp32; log-probs are sums over the answer's tokens, in nats.

    References are zero for losses that need none. ``rejected_of_rank`` and the others are for AOT alone:
    what stands at the same rank of the sorted global batch (``ranks``).
    """

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    chosen_reward: Tensor | None = None
    rejected_reward: Tensor | None = None
    reference_at_rank: Tensor | None = None
    rejected_at_rank: Tensor | None = None
    chosen_at_rank: Tensor | None = None
    mean_chosen_tokens: Tensor | None = None
    """Of the global batch; for ``sft`` alone."""

    def scores(self, options: PairOptions) -> tuple[Tensor, Tensor]:
        """Return the log-ratios of both sides [n], through the divergence's derivative."""
        chosen, rejected = (
            self.chosen - self.chosen_reference,
            self.rejected - self.rejected_reference,
        )
        if options.average:
            chosen, rejected = chosen / self.chosen_tokens, rejected / self.rejected_tokens
        return _through(options, chosen), _through(options, rejected)

    def averages(self) -> tuple[Tensor, Tensor]:
        """Return the policy's log-probs a token, [n] and [n]."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens

    def rewards(self) -> tuple[Tensor, Tensor]:
        """Return the rows' own rewards, [n] and [n]."""
        assert self.chosen_reward is not None, "data gives rewards, or their defaults, to RPO"
        assert self.rejected_reward is not None, "data gives rewards, or their defaults, to RPO"
        return self.chosen_reward, self.rejected_reward


def _through(options: PairOptions, ratio: Tensor) -> Tensor:
    """Return f'(exp(ratio)) without its constants (arXiv 2309.16240, table 1)."""
    match options.divergence:
        case "reverse_kl":
            return ratio
        case "forward_kl":
            return -torch.exp(-ratio)
        case "js_divergence":
            return logsigmoid(ratio)
        case "alpha_divergence":
            return torch.exp((options.alpha - 1) * ratio) / (options.alpha - 1)
