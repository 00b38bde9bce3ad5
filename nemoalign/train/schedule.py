"""How far a run goes, and its learning rate: a pure function of the steps already taken.

The curves are NeMo's (``nemo/core/optim/lr_scheduler.py``) under NeMo's names. The ``constant_steps``
of its cosine change two more things than their name says, and only there, for parity: warm-up then
starts at exactly 0, and the decay ends ``constant_steps`` before the run does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemoalign.config.schema import OptimConfig


@dataclass(frozen=True)
class Schedule:
    """Resolved schedule of one run; ``max_steps`` is the last optimizer step of the run."""

    name: str
    lr: float
    min_lr: float
    warmup_steps: int
    constant_steps: int
    max_steps: int
    power: float = 1.0

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
        return _CURVES[self.name](self, step)

    def problem(self) -> str | None:
        """Return what is odd about the schedule, in a sentence."""
        if not self.constant_steps or self.warmup_steps + self.constant_steps < self.max_steps:
            return None
        return (
            f"{self.warmup_steps} steps of warm-up and model.optim.sched.constant_steps "
            f"{self.constant_steps} leave none of the {self.max_steps} steps to anneal: after warm-up "
            f"the rate is {self.min_lr:g} (--min-lr) at once. "
            "--set model.optim.sched.constant_steps=0 anneals over the whole run."
        )

    def _warmup(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.warmup_steps + 1))

    def _with_constant_tail(self, step: int) -> float:
        length = self.max_steps - self.warmup_steps - self.constant_steps
        if step <= self.warmup_steps and self.warmup_steps > 0:
            return self.lr * step / self.warmup_steps
        if length <= 0 or step > self.warmup_steps + length:
            return self.min_lr
        return _cosine(self, step, length)


def _cosine(schedule: Schedule, step: int, length: int | None = None) -> float:
    angle = math.pi * _progress(schedule, step, length)
    return schedule.min_lr + (schedule.lr - schedule.min_lr) / 2 * (1 + math.cos(angle))


def _polynomial(schedule: Schedule, step: int) -> float:
    left = 1 - _progress(schedule, step)
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * left**schedule.power


def _linear(schedule: Schedule, step: int) -> float:
    return schedule.lr + (schedule.min_lr - schedule.lr) * _progress(schedule, step)


def _square_root(schedule: Schedule, step: int) -> float:
    left = (schedule.max_steps - step) / schedule.max_steps  # of the whole run, warm-up too
    return max(schedule.lr * left**0.5, schedule.min_lr)


def _inverse_square_root(schedule: Schedule, step: int) -> float:
    return schedule.lr / ((step + 1) / (schedule.warmup_steps + 1)) ** 0.5


def _progress(schedule: Schedule, step: int, length: int | None = None) -> float:
    """Return how much of the way from the end of warm-up is done, 0 to 1."""
    whole = schedule.max_steps - schedule.warmup_steps if length is None else length
    return (step - schedule.warmup_steps) / whole


_CURVES: dict[str, Callable[[Schedule, int], float]] = {
    "CosineAnnealing": _cosine,
    "linear": _linear,
    "WarmupAnnealing": _linear,
    "SquareRootAnnealing": _square_root,
    "InverseSquareRootAnnealing": _inverse_square_root,
    "PolynomialDecayAnnealing": _polynomial,
}


def resolved(optim: OptimConfig, max_steps: int) -> Schedule:
    """Return the schedule that the settings ask for in a run of ``max_steps``."""
    sched = optim.sched
    length = sched.max_steps or max_steps
    warmup, constant = sched.warmup_steps, sched.constant_steps
    if sched.warmup_ratio is not None:
        warmup = int(sched.warmup_ratio * length)
    if sched.constant_ratio is not None:
        constant = int(sched.constant_ratio * length)
    warmup = default_warmup(length) if warmup is None else warmup
    return Schedule(sched.name, optim.lr, sched.min_lr, warmup, constant, length, sched.power)


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
