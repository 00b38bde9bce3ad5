"""One optimizer step: micro-batches through megatron-core's schedule, then its optimizer.

The learner never touches a file. Everything numerical that depends on ranks is megatron-core's:
the schedule, gradient reduction, clipping across the model-parallel group, fp32 master weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads

from nemoalign.model.schedule import schedule
from nemoalign.parallel.measure import Stopwatch
from nemoalign.train.metrics import Mean, reduce_means
from nemoalign.train.optimizer import wrap
from nemoalign.train.passes import collect
from nemoalign.train.trainee import StepResult

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.config.schema import OptimConfig
    from nemoalign.data.collate import Batch
    from nemoalign.parallel.device import Backend
    from nemoalign.train.algorithm import Algorithm
    from nemoalign.train.passes import Forward, Keep
    from nemoalign.train.trainee import Agree


class Learner:
    """The trained model and its optimizer."""

    def __init__(
        self,
        chunks: Sequence[GPTModel],
        algorithm: Algorithm,
        backend: Backend,
        optim: OptimConfig,
        *,
        grad_clip: float,
    ) -> None:
        self.algorithm = algorithm
        self.backend = backend
        self.weight_decay = optim.weight_decay
        self.modules = list(chunks)
        self.model_config = chunks[0].config
        # Gradients are sums over tokens until finalize_model_grads divides by the global count.
        self.model_config.calculate_per_token_loss = True
        self.chunks, self.optimizer = wrap(chunks, backend, optim, grad_clip=grad_clip)
        self.updates = 0
        """Steps that were applied; Adam's bias correction depends on it."""
        self.watch = Stopwatch(backend.device)
        self.model_config.finalize_model_grads_func = self._finalize
        self.model_config.grad_scale_func = self.optimizer.scale_loss

    def trained_parameters(self) -> int:
        """Return the number of parameters this rank trains."""
        parameters = [p for chunk in self.modules for p in chunk.parameters()]
        return sum(p.numel() for p in parameters if p.requires_grad)

    def listen(self, agree: Agree) -> None:
        """Take nothing: a step is short, and the loop asks after each."""
        del agree

    def close(self) -> None:
        """End nothing: it works in this process alone."""

    def step(self, micro_batches: Sequence[Batch], lr: float) -> StepResult:
        """Take one optimizer step at ``lr``. Collective: every rank brings as many micro-batches."""
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        # megatron-core leaves both to its own scheduler; wd_mult is 0 for norms and biases.
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = self.weight_decay * group["wd_mult"]
        prepared = self.algorithm.prepare(self, micro_batches)
        self.watch.start()
        parts = self._run(prepared, forward_only=False)
        means = reduce_means(parts, self.algorithm.metric_names, self.backend.device)
        metrics = self.algorithm.report(means)
        seconds = self.watch.seconds()
        if not math.isfinite(metrics["loss"]):
            return StepResult(metrics, math.nan, False, _broken(parts), seconds)
        with self.backend.optimizer_scope():
            # megatron-core would clip by a norm that is not finite, and make every weight so.
            self.optimizer.prepare_grads()
            if not math.isfinite(self.optimizer.get_grad_norm()):
                return StepResult(metrics, math.nan, applied=False, compute_seconds=seconds)
            outcome: Any = self.optimizer.step()
        applied, grad_norm, _ = outcome
        self.updates += bool(applied)
        return StepResult(
            metrics, float(grad_norm or 0.0), applied=bool(applied), compute_seconds=seconds
        )

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Batch]) -> list[dict[str, Mean]]:
        """Return each micro-batch's metrics; empty except on the last pipeline stage. Collective."""
        for chunk in self.chunks:
            chunk.eval()
        return self._run(self.algorithm.prepare(self, micro_batches), forward_only=True)

    def collect(self, micro_batches: Sequence[Batch], forward: Forward, keep: Keep) -> list[Any]:
        """Return what ``keep`` makes of each micro-batch's output; see ``passes.collect``. Collective."""
        return collect(self.chunks, micro_batches, forward, keep, self.backend.device)

    def _run(self, micro_batches: Sequence[Batch], *, forward_only: bool) -> list[dict[str, Mean]]:
        """Drive megatron-core's schedule over the micro-batches of this rank."""
        return schedule(self.chunks, micro_batches, self._forward_step, forward_only=forward_only)

    def _finalize(self, *arguments: Any, **options: Any) -> None:
        """Reduce gradients over the replicas, which is where they first wait for one another."""
        self.watch.stop()
        finalize_model_grads(*arguments, **options)

    def _forward_step(self, iterator: Any, model: DistributedDataParallel) -> tuple[Any, Any]:
        batch = next(iterator).to(self.backend.device)
        output = self.algorithm.forward(model, batch)
        return output, partial(self._loss, batch)

    def _loss(self, batch: Batch, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        result = self.algorithm.loss(output, batch)
        return result.loss_sum, result.weight.to(torch.int), dict(result.metrics)


def _broken(parts: Sequence[dict[str, Mean]]) -> list[int]:
    """Return the micro-batches whose loss is not a finite number."""
    losses = [part["loss"].total.item() for part in parts if "loss" in part]
    return [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
