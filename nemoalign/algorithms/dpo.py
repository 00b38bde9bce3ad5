"""Direct preference optimization and its relatives: make the better answer likelier than the worse.

Rows come in pairs, the better answer first. The learner divides the sum of the pairs' losses by the
number of pairs of the global batch. Formulas are in ``pair_losses``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state

from nemoalign.algorithms.agreement import check_agreement
from nemoalign.algorithms.displacement import Displacement
from nemoalign.algorithms.documents import answer_logprobs, answer_tokens, of_documents
from nemoalign.algorithms.pair_losses import PAIR_LOSSES, RANKED
from nemoalign.algorithms.pairs import PairOptions, Pairs
from nemoalign.algorithms.preference import REFERENCE, WEIGHT, Preference, with_field
from nemoalign.algorithms.ranks import AT_RANK, at_ranks
from nemoalign.config.preference import WITHOUT_REFERENCE
from nemoalign.model.forward import forward_concentrations, forward_logprobs
from nemoalign.train.algorithm import LossOutput
from nemoalign.train.metrics import Mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.data.collate import Batch
    from nemoalign.train.learner import Learner

REWARD = "reward"
MEAN_TOKENS = "mean_chosen_tokens"
CONSTANT = (
    "dpo",
    "ipo",
    "ipo_sum",
    "hinge",
    "robust",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "sigmoid_norm",
)
"""Losses that are the same number for every pair whose policy is its reference."""


ROUNDING = 1e-5
"""Share of its log-prob by which an answer must fall to be displaced: less is how layouts differ."""


class Dpo(Preference):
    """Losses over pairs, by NeMo-Aligner's and TRL's names."""

    metric_names = (
        "loss",
        "preference_loss",
        "sft_loss",
        "accuracy",
        "margin",
        "rewards_chosen",
        "rewards_rejected",
        "logprobs_chosen",
        "logprobs_rejected",
        "tokens_chosen",
        "tokens_rejected",
        "displaced",
    )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.losses = config.losses
        self.options = PairOptions(
            beta=config.ref_policy_kl_penalty,
            label_smoothing=config.label_smoothing,
            average=bool(config.preference_average_log_probs),
            reward_scale=config.gt_reward_scale,
            divergence=config.f_divergence,
            alpha=config.f_alpha,
            discopop_tau=config.discopop_tau,
            simpo_gamma=config.simpo_gamma,
        )
        self.displacement = Displacement(self.options.beta)

    @property
    def needs_reference(self) -> bool:
        """True unless every loss looks at the policy alone."""
        return any(name not in WITHOUT_REFERENCE for name, _ in self.losses)

    def prepare(self, learner: Learner, micro_batches: Sequence[Batch]) -> list[Batch]:
        """Return the micro-batches with what the losses compare with, on the last pipeline stage."""
        batches = list(micro_batches)
        if self.needs_reference:
            batches = self.with_reference(learner, batches)
        if any(name == "sft" for name, _ in self.losses):
            batches = with_field(batches, MEAN_TOKENS, mean_chosen_tokens(learner, batches))
        if not any(name in RANKED for name, _ in self.losses):
            return batches
        with torch.no_grad():
            policy = learner.collect(batches, self.forward, of_documents)
        if not policy:  # a pipeline stage before the last
            return batches
        pairs = [self._pairs(mine, batch) for mine, batch in zip(policy, batches, strict=True)]
        partners = at_ranks(pairs, [batch.fields[WEIGHT][0::2] for batch in batches], self.options)
        return [
            replace(batch, fields={**batch.fields, **found})
            for batch, found in zip(batches, partners, strict=True)
        ]

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probs of the labels [b, s]; with WPO's weighting [b, s, 2], see the callee."""
        forward = forward_concentrations if self.config.use_weighting else forward_logprobs
        return forward(model, batch)

    def check_start(self, metrics: Mapping[str, float]) -> str | None:
        """Prove that policy and reference agree and that the loss is what it is there."""
        if not self.starts_at_reference:
            return None
        if self.config.use_weighting or any(name not in CONSTANT for name, _ in self.losses):
            return check_agreement(metrics, None)
        zero, one = torch.zeros(1), torch.ones(1)
        pair = Pairs(zero, zero, zero, zero, one, one)
        at_start = [w * PAIR_LOSSES[name](pair, self.options).item() for name, w in self.losses]
        return check_agreement(metrics, sum(at_start))

    def watch(self, metrics: Mapping[str, float]) -> str | None:
        """Return a word about likelihood displacement, once."""
        return self.displacement.watch(metrics)

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Return the summed loss of the pairs and their number; fillers count for nothing."""
        logprobs = output[..., 0] if self.config.use_weighting else output
        pairs = self._pairs(answer_logprobs(logprobs, batch), batch)
        preference = torch.zeros_like(pairs.chosen)
        for name, weight in self.losses:
            preference = preference + weight * PAIR_LOSSES[name](pairs, self.options)
        if self.config.use_weighting:
            preference = preference * policy_weights(output, batch)
        nll = -pairs.chosen
        if self.config.sft_average_log_probs:
            nll = nll / pairs.chosen_tokens
        config, real = self.config, batch.fields[WEIGHT][0::2]
        total = config.preference_loss_weight * preference + config.sft_loss_weight * nll
        seen = {"loss": total, "preference_loss": preference, "sft_loss": nll, **self._seen(pairs)}
        metrics = {
            name: Mean.of(values.where(real > 0, 0.0), real) for name, values in seen.items()
        }
        if not self.needs_reference:
            metrics["displaced"] = Mean.of(real, torch.zeros_like(real))  # a mean over nothing
        return LossOutput((total * real).sum(), real.sum(), metrics)

    def _seen(self, pairs: Pairs) -> dict[str, Tensor]:
        """Return what is worth watching of each pair, every tensor [pairs]."""
        chosen = self.options.beta * (pairs.chosen - pairs.chosen_reference)
        rejected = self.options.beta * (pairs.rejected - pairs.rejected_reference)
        fall = pairs.chosen_reference - pairs.chosen
        return {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "rewards_chosen": chosen,
            "rewards_rejected": rejected,
            "logprobs_chosen": pairs.chosen,
            "logprobs_rejected": pairs.rejected,
            "tokens_chosen": pairs.chosen_tokens,
            "tokens_rejected": pairs.rejected_tokens,
            "displaced": (fall > ROUNDING * pairs.chosen_reference.abs()).float(),
        }

    def _pairs(self, policy: Tensor, batch: Batch) -> Pairs:
        fields = {name: values.to(policy.device) for name, values in batch.fields.items()}
        tokens = answer_tokens(batch).to(policy.device).clamp(min=1)
        reference = fields.get(REFERENCE, torch.zeros_like(policy))
        rewards = fields.get(REWARD)
        return Pairs(
            *(policy[0::2], policy[1::2], reference[0::2], reference[1::2]),
            *(tokens[0::2], tokens[1::2]),
            *((rewards[0::2], rewards[1::2]) if rewards is not None else (None, None)),
            **{name: fields[name] for name in (*AT_RANK, MEAN_TOKENS) if name in fields},
        )


def policy_weights(output: Tensor, batch: Batch) -> Tensor:
    """Return WPO's weight of each pair [pairs], without gradient (arXiv 2406.11827, eq. 2).

    Args:
        output: [b, s, 2], log-probs of the labels and their concentrations.
        batch: of pairs, the better answer first.
    """
    aligned = (output[..., 0] - output[..., 1]).detach()
    means = answer_logprobs(aligned, batch) / answer_tokens(batch).clamp(min=1)
    return (means[0::2] + means[1::2]).exp()


def mean_chosen_tokens(learner: Learner, batches: Sequence[Batch]) -> list[Tensor]:
    """Return the mean tokens of a better answer of the global batch for each pair, [pairs]. Collective."""
    pairs = [(answer_tokens(b)[0::2], b.fields[WEIGHT][0::2]) for b in batches]
    sums = torch.stack([torch.stack([(t * real).sum(), real.sum()]) for t, real in pairs]).sum(0)
    sums = sums.to(learner.backend.device)
    torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return [(sums[0] / sums[1]).expand(len(real)) for _, real in pairs]
