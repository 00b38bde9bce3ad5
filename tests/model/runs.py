"""One training step through megatron-core's schedule, on as many ranks as the layout says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import neg
from typing import Any

import numpy as np
import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from nemoalign.config.architecture import Architecture
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logprobs
from nemoalign.model.load import load_weights, local_tensors
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.weights.splits import Split
from tests.model.tiny import VOCAB, Store


@dataclass
class Job:
    arch: Architecture
    arrays: dict[str, np.ndarray]
    batches: list[Any]
    settings: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings | None = None
    precision: str = "fp32"
    steps: int = 0
    seed: int = 1
    forward: Callable = forward_logprobs
    prepare: Callable = list
    """Takes the loaded chunks before their first pass."""
    objective: Callable = neg
    """What is summed over all labels and minimised, of the forward's output."""


@dataclass
class Result:
    logprobs: list[torch.Tensor]
    """Output of the forward on every microbatch, on the last stage."""
    grads: dict[str, tuple[Split, np.ndarray]]
    grad_norm: float | None = None
    losses: list[float] = field(default_factory=list)


def one_step(layout: ParallelLayout, job: Job) -> Result:
    """Return this rank's results: gradients of the mean objective over all labels, and a few losses."""
    with start(layout, seed=job.seed) as backend:
        chunks = build_model(
            job.arch,
            VOCAB,
            layout,
            precision=job.precision,
            settings=job.settings,
            lora=job.lora,
        )
        load_weights(chunks, Store(job.arrays), job.arch, layout, VOCAB)
        job.prepare(chunks)
        config = chunks[0].config
        config.calculate_per_token_loss = True
        config.finalize_model_grads_func = finalize_model_grads
        with backend.optimizer_scope():
            ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
            wrapped = [DistributedDataParallel(config, ddp, chunk) for chunk in chunks]
            optimizer = get_megatron_optimizer(
                OptimizerConfig(
                    optimizer="adam",
                    lr=1e-2,
                    clip_grad=1.0,
                    bf16=job.precision == "bf16",
                    params_dtype=config.params_dtype,
                ),
                wrapped,
            )
        mine = job.batches[layout.coordinates(torch.distributed.get_rank()).dp :: layout.dp]
        result = Result(_forward_backward(wrapped, mine, job), _gradients(chunks, layout))
        for _ in range(job.steps):
            with backend.optimizer_scope():
                _, norm, _ = optimizer.step()
            result.grad_norm = norm if result.grad_norm is None else result.grad_norm
            logprobs = _forward_backward(wrapped, mine, job)
            result.losses.append(float(sum(part.sum() for part in logprobs)))
        return result


def _forward_backward(chunks, batches, job) -> list[torch.Tensor]:
    for chunk in chunks:
        chunk.train()
        chunk.zero_grad_buffer()

    def loss(batch, output):
        total = (job.objective(output) * (batch.labels >= 0)).sum()
        return total, (batch.labels >= 0).sum().int(), {"logprobs": output.detach().clone()}

    def forward_step(iterator, model):
        batch = next(iterator)
        return job.forward(model, batch), partial(loss, batch)

    iterators = [iter(batches) for _ in chunks]
    reduced = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        seq_length=batches[0].tokens.shape[1],
        micro_batch_size=batches[0].tokens.shape[0],
        forward_only=False,
    )
    return [entry["logprobs"] for entry in reduced]


def _gradients(chunks, layout) -> dict[str, tuple[Split, np.ndarray]]:
    return {
        tensor.name: (tensor.split, tensor.parameter.main_grad.numpy().copy())
        for tensor in local_tensors(chunks, layout)
        if tensor.parameter.requires_grad and not tensor.is_copy
    }


def joined(results: list[Result], layout: ParallelLayout) -> dict[str, np.ndarray]:
    """Return whole gradients from those of the first data-parallel replica; replicas must agree."""
    shards: dict[str, list[tuple[Split, np.ndarray]]] = {}
    for rank, result in enumerate(results):
        if layout.coordinates(rank).dp == 0:
            for name, part in result.grads.items():
                shards.setdefault(name, []).append(part)
    whole = {}
    for name, parts in shards.items():
        split = parts[0][0]
        if split.dim is None:
            for _, array in parts:
                np.testing.assert_allclose(array, parts[0][1], rtol=0, atol=1e-7, err_msg=name)
        whole[name] = split.join([array for _, array in parts])
    return whole


def assert_gradients(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance=2e-6):
    """Compare by max|difference| / max|expected| of each tensor; vocabulary padding must be 0."""
    assert set(ours) == set(expected)
    for name, array in expected.items():
        rows = (
            array.shape[0]
            if name.endswith(("word_embeddings.weight", "output_layer.weight"))
            else None
        )
        assert not np.any(ours[name][rows:]) if rows else True, name
        error = np.abs(ours[name][:rows] - array).max() / max(np.abs(array).max(), 1e-12)
        assert error < tolerance, (name, error)
