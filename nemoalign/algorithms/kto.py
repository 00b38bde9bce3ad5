"""Kahneman-Tversky optimization: learn from single answers that are wanted or not.

Every row comes with a mismatched one, its prompt with another row's answer. Their mean log-ratio over
the global batch, clamped at 0, is the reference point z; it is computed first and without gradient.
NeMo-Aligner computes z per micro-batch and with gradients it never uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state

from nemoalign.algorithms.agreement import check_agreement
from nemoalign.algorithms.documents import answer_logprobs, answer_tokens, of_documents
from nemoalign.algorithms.label_losses import LabelOptions, apo_zero_unpaired, kl_estimate, kto
from nemoalign.algorithms.preference import REFERENCE, WEIGHT, Preference, with_field
from nemoalign.train.algorithm import LossOutput
from nemoalign.train.metrics import Mean

if TYPE_CHECKING:
    from torch import Tensor

    from nemoalign.data.collate import Batch
    from nemoalign.train.learner import Learner

DESIRABLE = "is_desirable"
KL = "kl"


class Kto(Preference):
    """KTO, and APO-zero of single answers."""

    metric_names = (
        "loss",
        "kl",
        "rewards_chosen",
        "rewards_rejected",
        "logprobs_chosen",
        "logprobs_rejected",
    )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.options = LabelOptions(
            config.ref_policy_kl_penalty,
            config.desirable_loss_weight,
            config.undesirable_loss_weight,
        )

    @property
    def needs_reference(self) -> bool:
        """True: every loss compares with the reference."""
        return True

    @property
    def uses_mismatched(self) -> bool:
        """True for the loss whose reference point mismatched rows give."""
        return self.config.preference_loss == "kto"

    def prepare(self, learner: Learner, micro_batches: Sequence[Batch]) -> list[Batch]:
        """Return the micro-batches with the reference's log-probs and z, on the last stage."""
        batches = self.with_reference(learner, micro_batches)
        return with_field(batches, KL, self._reference_points(learner, batches))

    def _reference_points(self, learner: Learner, batches: Sequence[Batch]) -> list[Tensor]:
        """Return z for each micro-batch, on the last pipeline stage. Collective."""
        mismatched = [batch.mismatched for batch in batches if batch.mismatched is not None]
        zero = torch.zeros((), device=learner.backend.device)
        if not self.uses_mismatched or not mismatched:
            return [zero] * len(batches)
        with torch.no_grad():
            policy = learner.collect(mismatched, self.forward, of_documents)
        sums = torch.zeros(len(batches), 2, device=zero.device)
        for row, (mine, other) in enumerate(zip(policy, mismatched, strict=bool(policy))):
            real = other.fields[WEIGHT].to(zero.device)
            sums[row] = torch.stack([(self._ratios(mine, other) * real).sum(), real.sum()])
        group = parallel_state.get_data_parallel_group()
        if self.config.kl_estimate == "micro_batch":
            # As NeMo-Aligner: every rank clamps its own mean, and these are averaged.
            points = torch.stack([kl_estimate(*row) for row in sums])
            torch.distributed.all_reduce(points, group=group)
            return list(points / parallel_state.get_data_parallel_world_size())
        total = sums.sum(0)
        torch.distributed.all_reduce(total, group=group)
        return [kl_estimate(*total)] * len(batches)

    def check_start(self, metrics: Mapping[str, float]) -> str | None:
        """Prove that policy and reference agree and, with equal weights, that the loss is half of them."""
        if not self.starts_at_reference:
            return None
        good, bad = self.options.desirable_weight, self.options.undesirable_weight
        return check_agreement(metrics, 0.5 * good if good == bad else None)

    def _ratios(self, policy: Tensor, batch: Batch) -> Tensor:
        """Return the log-ratio of each answer, [documents]; a token's where that is asked for."""
        ratios = policy - batch.fields[REFERENCE].to(policy.device)
        if not self.config.preference_average_log_probs:
            return ratios
        return ratios / answer_tokens(batch).to(policy.device).clamp(min=1)

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Return the summed loss of the answers and their number; fillers count for nothing."""
        policy, real = answer_logprobs(output, batch), batch.fields[WEIGHT]
        ratios = self._ratios(policy, batch)
        good = batch.fields[DESIRABLE] > 0
        if self.config.preference_loss == "kto":
            losses = kto(ratios, good, batch.fields[KL], self.options)
        else:
            losses = apo_zero_unpaired(ratios, good, self.options)
        rewards = self.options.beta * ratios
        wanted, unwanted = real * good, real * ~good
        metrics = {
            "loss": Mean.of(losses, real),
            "kl": Mean.of(batch.fields[KL].expand_as(real), real),
            "rewards_chosen": Mean.of(rewards, wanted),
            "rewards_rejected": Mean.of(rewards, unwanted),
            "logprobs_chosen": Mean.of(policy, wanted),
            "logprobs_rejected": Mean.of(policy, unwanted),
        }
        return LossOutput((losses * real).sum(), real.sum(), metrics)
