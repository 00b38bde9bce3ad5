"""Supervised fine-tuning: make the answer's tokens likely, given the prompt.

Cross-entropy of the target tokens, averaged over all target tokens of the global batch. NeMo
averages per micro-batch first (``megatron_gpt_model.py::loss_func``), which weighs the tokens of
short answers more; here the learner divides the sum once, unless ``loss_average`` asks for NeMo's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemoalign.model.forward import forward_logprobs
from nemoalign.train.algorithm import Algorithm, LossOutput
from nemoalign.train.metrics import Mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.data.collate import Batch


class Sft(Algorithm):
    """Negative log-likelihood of the answer."""

    metric_names = ("loss",)

    def __init__(self, config: Any) -> None:
        self.averages_micro_batches = config is not None and config.loss_average != "tokens"

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probs of the labels, [b, s]; zero where a position is not trained."""
        return forward_logprobs(model, batch)

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Return the summed negative log-probability of the target tokens and their number.

        With ``loss_average`` micro_batches: their mean, which counts as one.
        """
        targets = batch.labels >= 0  # [b, s]
        loss_sum = -(output * targets).sum()
        if self.averages_micro_batches:
            count = targets.sum().clamp(min=1)
            one = targets.any().long()
            mean = loss_sum / count
            return LossOutput(mean, one, {"loss": Mean(mean.detach().double(), one.double())})
        return LossOutput(loss_sum, targets.sum(), {"loss": Mean.of(-output, targets)})
