"""What differs between algorithms; everything else is the loop's and the learner's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.data.collate import Batch
    from nemoalign.model.reference import Reference
    from nemoalign.train.learner import Learner
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

    shown: tuple[str, ...] = ("loss",)
    """Metrics of a step that a progress bar shows."""

    reference: Reference | None = None
    """What the policy is compared with, where ``needs_reference`` asks for one."""

    @property
    def needs_reference(self) -> bool:
        """True when the loss compares the policy with one that does not learn."""
        return False

    def prepare(self, learner: Learner, micro_batches: Sequence[Batch]) -> list[Batch]:
        """Return the micro-batches of one global batch with what must be known of it beforehand.

        Collective: every rank brings its micro-batches. Most algorithms need nothing.
        """
        del learner
        return list(micro_batches)

    def check_start(self, metrics: Mapping[str, float]) -> str | None:
        """Return what the first step's metrics prove, in words; None where there is nothing to prove.

        Raises:
            VerificationError: when they are not what the algorithm's formulas give there.
        """
        del metrics
        return None

    def meet(self, rows: Any) -> None:
        """Take note of the rows a run learns from or measures on."""
        del rows

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return what is logged, from the means of ``metric_names``."""
        return dict(means)

    def watch(self, metrics: Mapping[str, float]) -> str | None:
        """Return a warning about how learning goes, from the metrics of a step that was applied."""
        del metrics
        return None

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
