"""Where a run stands: what a checkpoint keeps beside weights, optimizer and random streams."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run stands; the only state of the loop, saved with every checkpoint."""

    step: int = 0
    consumed_samples: int = 0
    epoch: int = 0
    tokens: float = 0.0
    val_metrics: dict[str, float] | None = None
    skipped: int = 0
    """Steps that were not applied because loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    monitored: list[float] = field(default_factory=list)
    """The monitored metric at every validation so far."""
    best_step: int | None = None
    """The step of the best of them."""
    owes_validation: bool = False
    """A stop kept this step from being validated; the next start does it first."""

    def note(self, value: float, mode: str = "min") -> None:
        """Add the monitored metric of a validation that was made now; ``mode`` says which is best."""
        best = self.best(mode)
        if best is None or (value > best if mode == "max" else value < best):
            self.best_step = self.step
        self.monitored.append(value)

    def best(self, mode: str = "min") -> float | None:
        """Return the best of the values so far."""
        return (max if mode == "max" else min)(self.monitored, default=None)
