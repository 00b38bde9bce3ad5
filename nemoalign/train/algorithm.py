"""What differs between algorithms; everything else is the loop's and the learner's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.data.collate import Batch
    from nemoalign.train.metrics import Mean


@dataclass(frozen=True)
class LossOutput:
    """One micro-batch's contribution: a sum, what it is a sum over, and sums to report.

    The learner divides once, by the count over all micro-batches and data-parallel ranks, so
    the result never depends on micro batch size, TP, PP or DP.
    """

    loss_sum: Tensor
    weight: Tensor
    metrics: Mapping[str, Mean] = field(default_factory=dict)


class Algorithm(Protocol):
    """One idea: how a micro-batch goes through the model and what its loss is."""

    metric_names: tuple[str, ...]
    """Every name that ``loss`` puts into ``LossOutput.metrics``."""

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return this pipeline stage's output for one micro-batch; on the last, what ``loss`` takes."""
        ...

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Return sums over one micro-batch. Called on the last pipeline stage only."""
        ...


def load_algorithm(path: str, config: Any) -> Algorithm:
    """Return the algorithm that ``module:Class`` (a row of ``config.algorithms``) names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)(config)
