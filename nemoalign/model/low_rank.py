"""One low-rank pair beside one of megatron-core's parallel linear layers, on this rank.

Column-parallel bases (qkv, fc1): A [dim, in] is on every rank, B [out/tp, dim] is cut as the base is.
Row-parallel bases (proj, fc2): A [dim, in/tp] is cut as the base is, B [out, dim] is on every rank. So
only activations of width dim travel. A's input for qkv and fc1 is the norm's output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor, nn
from torch.nn import functional

from nemoalign.model.lora_settings import InitMethod, LoraSettings
from nemoalign.parallel.state import model_parallel_stream


class AdapterLayer(MegatronModule):
    """Holds the adapters of one attention or MLP block, under NeMo's name for it."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Return the adapters' weights as megatron-core's checkpoints take them."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        state: dict[str, Any] = {}
        for name, adapter in self.named_children():
            assert isinstance(adapter, Adapter)
            state.update(adapter.sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata))
        return state


class _Weight(nn.Module):
    """One factor of an adapter; a module of its own because checkpoints say ``linear_in.weight``."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class Adapter(nn.Module):
    """The low-rank pair beside ``base``; adds itself to the base's output by a forward hook."""

    def __init__(self, base: Any, lora: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.is_column = isinstance(base, ColumnParallelLinear)
        self.group = base.tp_group
        self.sequence_parallel = base.sequence_parallel
        self.scale, self.enabled = lora.scale, True
        self.dropout, self.dropout_position = lora.adapter_dropout, lora.dropout_position
        self.runs = base.weight.partition_stride
        shapes = (lora.adapter_dim, base.input_size), (base.output_size, lora.adapter_dim)
        methods = lora.column_init_method, lora.row_init_method
        factor_in, factor_out = (
            _initial(shape, method, generator).to(base.weight)
            for shape, method in zip(shapes, methods, strict=True)
        )
        if self.is_column:
            factor_out = self._shard(factor_out, 0, self.runs)
        else:
            factor_in = self._shard(factor_in, 1, 1)
        self.linear_in, self.linear_out = _Weight(factor_in), _Weight(factor_out)
        self._mark()
        base.register_forward_hook(self._add_to_output)

    def _shard(self, whole: Tensor, dim: int, runs: int) -> Tensor:
        """Return this tp rank's part of every one of the ``runs`` equal runs along ``dim``."""
        size, rank = self.group.size(), self.group.rank()
        parts = [run.chunk(size, dim)[rank] for run in whole.chunk(runs, dim)]
        return torch.cat(parts, dim)

    def _mark(self) -> None:
        """Mark the shard for the gradient norm, and what is whole for the sum over tp."""
        shard, whole = self.linear_in.weight, self.linear_out.weight
        if self.is_column:
            shard, whole = whole, shard
            set_tensor_model_parallel_attributes(shard, True, 0, self.runs)
        else:
            set_tensor_model_parallel_attributes(shard, True, 1, 1)
        # Under sequence parallelism the whole factor sees a part of the sequence on each rank.
        vars(whole)["sequence_parallel"] = self.sequence_parallel

    def _add_to_output(self, base: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        if not self.enabled:
            return None
        result, bias = output
        return torch.add(result, self(args[0]), alpha=self.scale), bias

    def forward(self, hidden: Tensor) -> Tensor:
        """Return B(A(hidden)), cut as the base's output is. ``hidden`` is the base's input."""
        if self.dropout_position == "pre":
            # A column base's input is the same on every tp rank, a row base's is its own part.
            hidden = self._drop(hidden, differs=not self.is_column)
        narrow = self._across_ranks(functional.linear(hidden, self.linear_in.weight))
        wide = functional.linear(narrow, self.linear_out.weight)
        if self.dropout_position == "post":
            wide = self._drop(wide, differs=self.is_column)
        return wide

    def _across_ranks(self, narrow: Tensor) -> Tensor:
        """Return the whole [s, b, dim] that B multiplies; its gradient is made whole on the way back."""
        if self.group.size() == 1:
            return narrow
        if self.is_column:
            if self.sequence_parallel:
                return gather_from_sequence_parallel_region(
                    narrow, tensor_parallel_output_grad=True, group=self.group
                )
            return copy_to_tensor_model_parallel_region(narrow, group=self.group)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(narrow, group=self.group)
        return reduce_from_tensor_model_parallel_region(narrow, group=self.group)

    def _drop(self, tensor: Tensor, *, differs: bool) -> Tensor:
        """Return ``tensor`` with dropout; from the ranks' own streams where their values differ.

        With sequence parallelism the decoder already runs in those streams.
        """
        if not self.dropout or not self.training:
            return tensor
        if differs and not self.sequence_parallel:
            with model_parallel_stream():
                return functional.dropout(tensor, self.dropout)
        return functional.dropout(tensor, self.dropout)

    def sharded_state_dict(
        self, prefix: str, sharded_offsets: tuple, metadata: dict[str, Any]
    ) -> dict[str, Any]:
        """Return both factors as megatron-core's checkpoints take them."""
        axes = {"linear_out.weight": 0} if self.is_column else {"linear_in.weight": 1}
        state = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            axes,
            sharded_offsets,
            tp_group=self.group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self.runs == 2:
            # B of [gate; up] is cut in each half, as fc1's own weight is.
            key = f"{prefix}linear_out.weight"
            state[key] = apply_swiglu_sharded_factory(
                state[key], sharded_offsets, metadata.get("singleton_local_shards", False)
            )
        return state


def _initial(shape: tuple[int, int], method: InitMethod, generator: torch.Generator) -> Tensor:
    """Return a fresh whole factor [out, in] in fp32."""
    fan_out, fan_in = shape
    fresh = torch.zeros(shape)
    if method == "kaiming":
        bound = math.sqrt(1.0 / fan_in)  # kaiming uniform with a = sqrt(5), as peft starts A
        return fresh.uniform_(-bound, bound, generator=generator)
    deviation = {"xavier": math.sqrt(2.0 / (fan_in + fan_out)), "normal": 0.2}.get(method)
    return fresh if deviation is None else fresh.normal_(0.0, deviation, generator=generator)
