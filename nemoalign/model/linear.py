"""megatron-core's parallel linear layers, without what only training needs where nothing is learned."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor
from torch.nn import functional

NARROW_ROWS = 8


class ColumnLinear(ColumnParallelLinear):
    """A column-parallel layer; without gradients it is one product."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return this rank's part of the output, and the bias that is added later."""
        if args or kwargs or self.gather_output or _needs_more(self):
            return super().forward(input_, *args, **kwargs)
        own: Any = self
        return _with_bias(own, product(input_, own.weight))


class RowLinear(RowParallelLinear):
    """A row-parallel layer; without gradients it is one product and one sum over tp."""

    def forward(self, input_: Tensor) -> Any:
        """Return the output, and the bias that is added later."""
        if not self.input_is_parallel or _needs_more(self):
            return super().forward(input_)
        own: Any = self
        output = product(input_, own.weight)
        if own.tp_group.size() > 1:
            output = reduce_from_tensor_model_parallel_region(output, group=own.tp_group)
        return _with_bias(own, output)


def product(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return ``hidden`` [..., in] times the transpose of ``weight`` [out, in].

    A few rows times a weight is what decoding consists of, and BLAS libraries are at their worst there:
    weight times columns is up to four times faster, and two columns cost less than one.
    """
    rows, (wide, inner) = hidden.numel() // hidden.shape[-1], weight.shape
    is_narrow = rows <= 2 or (rows <= NARROW_ROWS and wide > inner)
    if not is_narrow or hidden.device.type != "cpu" or hidden.dtype is not torch.float32:
        return functional.linear(hidden, weight)
    columns = hidden.reshape(rows, inner).expand(max(rows, 2), inner).contiguous()
    found = torch.mm(weight, columns.t())[:, :rows].t().contiguous()
    return found.view(*hidden.shape[:-1], wide)


def _needs_more(linear: Any) -> bool:
    """True where gradients, a cut sequence or experts apart ask for megatron-core's own way."""
    return torch.is_grad_enabled() or linear.sequence_parallel or linear.explicit_expert_comm


def _with_bias(linear: Any, output: Tensor) -> tuple[Tensor, Tensor | None]:
    if linear.skip_bias_add or linear.bias is None:
        return output, linear.bias if linear.skip_bias_add else None
    return output + linear.bias, None
