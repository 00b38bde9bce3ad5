"""Reward models: a head on the last hidden state of an answer learns what people think of it.

``binary_ranking`` learns from pairs which answer is better (Bradley-Terry); ``regression`` learns scores
of one or more attributes, or with a Bradley-Terry loss how much better the second of two answers is.
NeMo-Aligner averages per micro-batch; here the learner divides once, by the pairs or labels of the
global batch. Formulas are in ``reward_losses``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from nemoalign.algorithms.reward_losses import bradley_terry, graded_bradley_terry, regression
from nemoalign.data.rewards import MARGIN, STRENGTH, label_name
from nemoalign.model.forward import forward_rewards
from nemoalign.train.algorithm import Algorithm, LossOutput
from nemoalign.train.metrics import Mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.data.collate import Batch

PAIRED = ("loss", "accuracy", "margin", "rewards_chosen", "rewards_rejected")
SQUARE = "rewards_square"
HELPFULNESS = 4
"""The attribute whose score NeMo-Aligner's graded losses compare, where a head has so many."""


class Rm(Algorithm):
    """Bradley-Terry and regression, by NeMo-Aligner's names."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.attributes: tuple[str, ...] = ()
        self.metric_names = self._names()

    def meet(self, rows: Any) -> None:
        """Take note of what the labels of the rows are about."""
        self.attributes = rows.attributes
        self.metric_names = self._names()

    def _names(self) -> tuple[str, ...]:
        own = tuple(f"mse_{name}" for name in self.attributes)
        return (*(("loss", *own) if self.config.scores_answers else PAIRED), "rewards_mean", SQUARE)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the rewards of the answers, [documents, outputs], on the last stage."""
        return forward_rewards(model, batch, averages=self.config.use_avg_pool)

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Return the summed loss and the number of pairs or labels; fillers count for nothing."""
        result = (self._scored if self.config.scores_answers else self._paired)(output, batch)
        real = batch.fields["weight"][:, None].expand_as(output)
        seen = {"rewards_mean": Mean.of(output, real), SQUARE: Mean.of(output.square(), real)}
        return LossOutput(result.loss_sum, result.weight, {**result.metrics, **seen})

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the means with the spread of all rewards in place of their mean square."""
        rest = dict(means)
        square = rest.pop(SQUARE)
        spread = math.sqrt(max(0.0, square - rest["rewards_mean"] ** 2))
        return {**rest, "rewards_std": spread if not math.isnan(square) else square}

    def _scored(self, output: Tensor, batch: Batch) -> LossOutput:
        labels = torch.stack(
            [batch.fields[label_name(n)] for n in range(len(self.attributes))], dim=1
        )
        errors, known = regression(output, labels, self.config.loss_mask_val)
        known = known & (batch.fields["weight"][:, None] > 0)
        metrics = {"loss": Mean.of(errors, known)}
        for number, name in enumerate(self.attributes):
            metrics[f"mse_{name}"] = Mean.of(errors[:, number], known[:, number])
        return LossOutput((errors * known).sum(), known.sum(), metrics)

    def _paired(self, output: Tensor, batch: Batch) -> LossOutput:
        real = batch.fields["weight"][0::2]
        if self.config.reward_model_type == "binary_ranking":
            chosen, rejected = output[0::2, 0], output[1::2, 0]
            margin = batch.fields[MARGIN][0::2] if self.config.use_margin else 0.0
            losses = bradley_terry(chosen, rejected, margin, self.config.center_rewards_coefficient)
        else:
            column = HELPFULNESS if output.shape[1] > HELPFULNESS else 0
            first, second = output[0::2, column], output[1::2, column]
            strength = batch.fields[STRENGTH][0::2]
            losses = graded_bradley_terry(first, second, strength, self.config.loss_func)
            chosen, rejected = first.where(strength < 0, second), second.where(strength < 0, first)
        seen = {
            "loss": losses,
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "rewards_chosen": chosen,
            "rewards_rejected": rejected,
        }
        metrics = {name: Mean.of(values, real) for name, values in seen.items()}
        return LossOutput((losses * real).sum(), real.sum(), metrics)
