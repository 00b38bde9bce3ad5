"""What the loop drives: something that takes steps and can be measured, whatever a step is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.parallel.device import Backend
    from nemoalign.train.metrics import Mean
    from nemoalign.train.stopping import Asked

    Agree = Callable[[bool], tuple[float, Asked]]


@dataclass(frozen=True)
class StepResult:
    """What one step reports; ``metrics``, ``grad_norm`` and ``applied`` are equal on every rank."""

    metrics: dict[str, float]
    grad_norm: float
    applied: bool
    broken: list[int] = field(default_factory=list)
    """Micro-batches of this rank whose loss is not finite; known on the last pipeline stage."""
    compute_seconds: float = 0.0
    """This rank's work, until it waits for the other replicas."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """What is logged beside the metrics as rank 0 has it: seconds of phases, counts."""
    tokens: int | None = None
    """Tokens of this replica in the step; None where they are those of its micro-batches."""
    updates: int | None = None
    """Updates of the optimizer in the step; None where a step is one update."""
    rollouts: Sequence[Mapping[str, Any]] = ()
    """What the step sampled and learned from, on rank 0: ``prompt``, ``response``, ``reward`` and more."""


class Reports(Protocol):
    """What the loop asks about metrics."""

    metric_names: tuple[str, ...]
    """Every name that a micro-batch's metrics may have where rows are measured."""

    shown: tuple[str, ...]
    """Metrics of a step that a progress bar shows."""

    def check_start(self, metrics: Mapping[str, float]) -> str | None:
        """Return what the first step's metrics prove, in words; None where there is nothing to prove."""
        ...

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return what is logged of a measurement, from the means of ``metric_names``."""
        ...

    def watch(self, metrics: Mapping[str, float]) -> str | None:
        """Return a warning about how learning goes, from the metrics of a step that was applied."""
        ...


class Trainee(Protocol):
    """One learner, or several that learn together. Every rank has one."""

    @property
    def algorithm(self) -> Reports:
        """What its metrics mean; a step's always have a ``loss``."""
        ...

    @property
    def backend(self) -> Backend:
        """Where it computes."""
        ...

    @property
    def modules(self) -> Sequence[GPTModel]:
        """This rank's parts of the model that answers prompts."""
        ...

    def listen(self, agree: Agree) -> None:
        """Take what tells, amid long work, whether somebody asked to stop.

        ``agree`` is collective over the world: it takes whether this replica is still at work and
        returns how many are, and what any rank was asked for. On a wish to stop, ``step`` and
        ``evaluate`` may raise ``stopping.Cut`` as long as they have changed nothing; the loop keeps
        other wishes itself.
        """
        ...

    def close(self) -> None:
        """End what works beside this process; nothing is asked of it any more."""
        ...

    def step(self, micro_batches: Sequence[Any], lr: float) -> StepResult:
        """Learn from this rank's part of a global batch. Collective.

        Raises:
            Cut: on every rank, when somebody asked to stop before anything was learned.
        """
        ...

    def evaluate(self, micro_batches: Sequence[Any]) -> list[dict[str, Mean]]:
        """Return metrics of this rank's part of a global batch, on the last pipeline stage. Collective.

        Raises:
            Cut: on every rank, when somebody asked to stop.
        """
        ...
