"""How far a run goes, and its learning rate: a pure function of the steps already taken.

The cosine is NeMo's ``CosineAnnealing`` (``nemo/core/optim/lr_scheduler.py``). Its
``constant_steps`` changes two more things than its name says, and only there, for parity: warm-up
then starts at exactly 0, and the decay ends ``constant_steps`` before the run does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Resolved schedule of one run; ``max_steps`` is the last optimizer step of the run."""

    name: str
    lr: float
    min_lr: float
    warmup_steps: int
    constant_steps: int
    max_steps: int

    def at(self, step: int) -> float:
        """Return the learning rate for the optimizer step that follows ``step`` finished ones."""
        if self.name == "constant":
            return self.lr * self._warmup(step)
        if self.constant_steps > 0:
            return self._with_constant_tail(step)
        if step <= self.warmup_steps:
            return self.lr * self._warmup(step)
        if step > self.max_steps:
            return self.min_lr
        return self._decay(step, self.max_steps - self.warmup_steps)

    def _warmup(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.warmup_steps + 1))

    def _decay(self, step: int, length: int) -> float:
        progress = (step - self.warmup_steps) / length
        if self.name == "linear":
            return self.lr + (self.min_lr - self.lr) * progress
        return self.min_lr + (self.lr - self.min_lr) / 2 * (1 + math.cos(math.pi * progress))

    def _with_constant_tail(self, step: int) -> float:
        length = self.max_steps - self.warmup_steps - self.constant_steps
        if step <= self.warmup_steps and self.warmup_steps > 0:
            return self.lr * step / self.warmup_steps
        if length <= 0 or step > self.warmup_steps + length:
            return self.min_lr
        return self._decay(step, length)


def default_warmup(max_steps: int) -> int:
    """Ten steps, but at most a tenth of the run."""
    return min(10, max_steps // 10)


@dataclass(frozen=True)
class LoopSettings:
    """Limits and intervals in optimizer steps (0 is never), and the learning rate over them."""

    max_steps: int
    steps_per_epoch: int
    global_batch_size: int
    val_every: int
    save_every: int
    max_seconds: int | None
    schedule: Schedule
    max_skipped: int = 3
    patience: int = 0
    min_delta: float = 0.0
    monitor: str = "val_loss"
    mode: str = "min"
