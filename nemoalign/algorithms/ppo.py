"""What is learned from a rollout: the policy from advantages, the critic from returns.

A micro-batch brings, beside labels, numbers of every answer token: fields of the shape of ``labels`` that
are 0 elsewhere. Formulas are in ``policy_losses`` and ``kl``; NeMo-Aligner averages per micro-batch
(``megatron_gpt_ppo_actor.py``), here the learner divides once, by what the global batch counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nemoalign.algorithms.documents import sum_documents
from nemoalign.algorithms.kl import kl_loss
from nemoalign.algorithms.policy_losses import (
    cispo,
    clipped_surrogate,
    clipped_values,
    reinforce,
    sequence_log_ratios,
)
from nemoalign.model.forward import forward_entropies, forward_values
from nemoalign.train.algorithm import Algorithm, LossOutput
from nemoalign.train.metrics import Mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.config.ppo import PpoSettings
    from nemoalign.data.collate import Batch

OLD = "logprobs_old"
"""Log-probs of the policy that wrote the answers."""
REFERENCE = "logprobs_reference"
ADVANTAGES = "advantages"
LEARNED = "learned"
"""1 where the policy learns."""
RETURNS = "returns"
VALUES_OLD = "values_old"
VALUED = "valued"
"""Where values are learned: 1, or with a shared trunk the weight of their loss beside the policy's."""

POLICY = ("loss", "ratio", "ratio_deviation", "clip_fraction", "kl_update", "entropy")


class Policy(Algorithm):
    """The clipped surrogate of PPO (arXiv 1707.06347, eq. 7) and its relatives."""

    metric_names = POLICY

    def __init__(self, config: Any) -> None:
        self.config: PpoSettings = config
        if self._adds_kl:
            self.metric_names = (*self.metric_names, "kl")
        if config.share_trunk:
            self.metric_names = (*self.metric_names, "critic_loss")

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-prob and entropy of every label, with a shared trunk the value too: [b, s, 2 or 3]."""
        own = self.config
        return forward_entropies(
            model, batch, learned=own.entropy_bonus > 0, with_values=own.share_trunk
        )

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Return the summed loss and what it is divided by: learned tokens, or answers that have some."""
        own, fields = self.config, batch.fields
        logprobs, entropies, mask = output[..., 0], output[..., 1], fields[LEARNED]
        old = fields.get(OLD, logprobs.detach())
        log_ratios = logprobs - old
        losses, is_clipped = self._surrogate(logprobs, old, batch)
        ratios = log_ratios.detach().exp()
        seen = {
            "ratio": ratios,
            "ratio_deviation": (ratios - 1).abs(),
            "clip_fraction": is_clipped.float(),
            "kl_update": ratios - 1 - log_ratios.detach(),
            "entropy": entropies,
        }
        if self._adds_kl:
            seen["kl"] = kl_loss(logprobs, fields[REFERENCE], own.kl_kind)
            losses = losses + own.initial_policy_kl_penalty * seen["kl"]
        if own.entropy_bonus:
            losses = losses - own.entropy_bonus * entropies
        total, weight = self._averaged(losses * mask, batch)
        metrics = {name: Mean.of(values, mask) for name, values in seen.items()}
        metrics["loss"] = Mean(total.detach().double(), weight.double())
        if own.share_trunk:
            values_losses = self._value_losses(output[..., 2], batch)
            metrics["critic_loss"] = Mean.of(values_losses, (fields[VALUED] > 0).float())
            total = total + (values_losses * fields[VALUED]).sum()
        return LossOutput(total, weight, metrics)

    @property
    def _adds_kl(self) -> bool:
        """True when the distance to the reference is part of the loss."""
        return self.config.initial_policy_kl_penalty > 0 and self.config.kl_place == "loss"

    def _surrogate(self, logprobs: Tensor, old: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of every token, and whether clipping holds it."""
        own, fields = self.config, batch.fields
        advantages = fields[ADVANTAGES]
        low, high = own.ratio_eps, own.ratio_eps_high or own.ratio_eps
        if own.policy_loss == "reinforce":
            return reinforce(logprobs, advantages), torch.zeros_like(logprobs, dtype=torch.bool)
        if own.policy_loss == "cispo":
            return cispo(logprobs, old, advantages, low, high)
        if own.policy_loss == "gspo":
            logprobs = old + sequence_log_ratios(logprobs - old, fields[LEARNED], batch)
        return clipped_surrogate(logprobs, old, advantages, low, high, own.ratio_clip_c)

    def _averaged(self, losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the sum of masked losses, and the count that makes a mean of it."""
        mask = batch.fields[LEARNED]
        if self.config.loss_average == "tokens":
            return losses.sum(), mask.sum()
        tokens = sum_documents(mask, batch)
        answers = (tokens > 0).sum()
        sums = sum_documents(losses, batch)
        if self.config.loss_average == "answers":
            return (sums / tokens.clamp(min=1)).sum(), answers
        assert self.config.max_new_tokens is not None, "derived from the sequence length"
        return sums.sum() / self.config.max_new_tokens, answers

    def _value_losses(self, values: Tensor, batch: Batch) -> Tensor:
        fields = batch.fields
        return clipped_values(
            values, fields[VALUES_OLD], fields[RETURNS], self.config.loss_clip_val
        )


class Critic(Algorithm):
    """Values of every answer token, learned from returns (NeMo-Aligner's ``megatron_gpt_critic.py``)."""

    metric_names = ("loss",)

    def __init__(self, config: Any) -> None:
        self.config: PpoSettings = config

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the value before every token, [b, s]."""
        return forward_values(model, batch)

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Return the summed loss and the number of tokens."""
        fields = batch.fields
        losses = clipped_values(
            output, fields[VALUES_OLD], fields[RETURNS], self.config.loss_clip_val
        )
        mask = (fields[VALUED] > 0).float()
        return LossOutput((losses * mask).sum(), mask.sum(), {"loss": Mean.of(losses, mask)})
