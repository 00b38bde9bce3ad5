"""Sums travel, means do not: metrics are (sum, count) until the last reduction.

A mean of means would depend on how samples were dealt to micro-batches and ranks; a sum does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state


@dataclass(frozen=True)
class Mean:
    """A weighted mean in the making: ``total`` over ``count`` (tokens, pairs or samples)."""

    total: torch.Tensor
    count: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, weights: torch.Tensor) -> Mean:
        """Return the mean of ``values`` weighted by ``weights``, both of one shape, detached."""
        kept = values.detach().double() * weights
        return cls(kept.sum(), weights.double().sum())


def reduce_means(
    parts: Iterable[Mapping[str, Mean]], names: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Return each named mean over all micro-batches and data-parallel ranks, on every rank.

    Collective over the world. Only the last pipeline stage has ``parts``; of its tensor-parallel
    ranks, which hold the same values, one contributes. A mean over nothing is NaN.
    """
    sums = torch.zeros(len(names), 2, dtype=torch.float64, device=device)
    if (
        parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        and parallel_state.get_tensor_model_parallel_rank() == 0
    ):
        for part in parts:
            both = [number for name in names for number in (part[name].total, part[name].count)]
            # Where they are: reading them one by one would wait for the device each time.
            sums += torch.stack([number.to(device, torch.float64) for number in both]).view(-1, 2)
    torch.distributed.all_reduce(sums)
    totals, counts = sums.cpu().unbind(1)
    return {
        name: (total / count).item() if count else math.nan
        for name, total, count in zip(names, totals, counts, strict=True)
    }


def reduce_sums(
    per_replica: Sequence[float], per_rank: Sequence[float], device: torch.device
) -> list[float]:
    """Return sums over the world; of ``per_replica`` values each model replica counts once.

    Collective over the world.
    """
    speaks = (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_pipeline_model_parallel_rank() == 0
    )
    mine = [value * speaks for value in per_replica] + list(per_rank)
    totals = torch.tensor(mine, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(totals)
    return totals.tolist()


def known(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics without means over nothing (no row of that kind); a loss is kept as it is."""
    return {name: v for name, v in metrics.items() if name == "loss" or not math.isnan(v)}
