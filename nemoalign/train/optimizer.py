"""megatron-core's gradient buffers and AdamW for a model, as the settings and the layout ask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from nemoalign.weights.names import is_adapter

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.config.schema import OptimConfig
    from nemoalign.parallel.device import Backend


def wrap(
    chunks: Sequence[GPTModel], backend: Backend, optim: OptimConfig, *, grad_clip: float
) -> tuple[list[Any], Any]:
    """Return the chunks inside megatron-core's gradient buffers, and the optimizer over them. Collective."""
    config: Any = chunks[0].config
    distributed = _is_distributed(chunks, optim)
    overlap = _overlaps(chunks, backend, optim)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed,
        overlap_grad_reduce=overlap,
    )
    with backend.optimizer_scope():
        wrapped: list[Any] = [
            # Only the first chunk's buckets are reduced while others still compute.
            DistributedDataParallel(config, ddp_config, chunk, disable_bucketing=number > 0)
            for number, chunk in enumerate(chunks)
        ]
        optimizer: Any = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=optim.lr,
                weight_decay=optim.weight_decay,
                adam_beta1=optim.betas[0],
                adam_beta2=optim.betas[1],
                adam_eps=optim.eps,
                # megatron-core only computes the norm when it clips; infinity never clips.
                clip_grad=grad_clip if grad_clip > 0 else math.inf,
                bf16=config.params_dtype == torch.bfloat16,
                params_dtype=config.params_dtype,
                use_distributed_optimizer=distributed,
            ),
            wrapped,
        )
    for one in optimizer.chained_optimizers:
        if isinstance(one, DistributedOptimizer):
            _count_as_they_lie(one)
    if overlap:
        waiting = [one.no_sync for one in wrapped]
        config.no_sync_func = waiting if len(waiting) > 1 else waiting[0]
    return wrapped, optimizer


def _count_as_they_lie(optimizer: DistributedOptimizer) -> None:
    """Number the parameters of a group as its optimizer holds them: those in fp32 first.

    megatron-core (0.16.1) numbers them as they lie in its buffers, which is the same only where all are
    of one type; of a bf16 model with a head in fp32 it would save one's state as another's.
    """
    for number, group in enumerate(optimizer.opt_group_ranges):
        ordered = sorted(group["params"], key=lambda parameter: parameter.dtype != torch.float32)
        for order, parameter in enumerate(ordered):
            optimizer.model_param_group_index_map[parameter] = number, order


def _is_distributed(chunks: Sequence[GPTModel], optim: OptimConfig) -> bool:
    """True when the ranks of data parallelism share out moments and masters instead of repeating them.

    Unless it is asked for or forbidden, whole weights do, whose state is six times their size in
    bf16; adapters do not, whose state is small.
    """
    if parallel_state.get_data_parallel_world_size() == 1:
        return False
    if optim.distributes is not None:
        return optim.distributes
    named = [pair for chunk in chunks for pair in chunk.named_parameters()]
    learns = any(parameter.requires_grad for _, parameter in named)
    return learns and not any(is_adapter(name) for name, _ in named)


def _overlaps(chunks: Sequence[GPTModel], backend: Backend, optim: OptimConfig) -> bool:
    """True when gradients travel while the backward pass still computes.

    Unless it is asked for or forbidden, on GPUs: a CPU that sends computes the slower. An expert that
    gets no token has no gradient to wait for, so never with experts.
    """
    if parallel_state.get_data_parallel_world_size() == 1 or chunks[0].config.num_moe_experts:
        return False
    if optim.overlap_grad_sync is not None:
        return optim.overlap_grad_sync
    return backend.name == "cuda"
