"""The MLP's activation functions under NeMo's names (``activation_to_func`` and megatron-core's fusions)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError

gelu_tanh = partial(functional.gelu, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), which NeMo calls approx-gelu."""
    return x * torch.sigmoid(1.702 * x)


def squared_relu(x: Tensor) -> Tensor:
    """Return relu(x)^2."""
    return functional.relu(x).square()


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "approx-gelu": quick_gelu,
    "squared-relu": squared_relu,
    "geglu": functional.gelu,
    "fast-geglu": functional.gelu,
    "swiglu": functional.silu,
    "fast-swiglu": functional.silu,
    "reglu": functional.relu,
    "fast-reglu": functional.relu,
}


def activation_function(arch: Architecture) -> Callable[[Tensor], Tensor]:
    """Return the elementwise function of ``arch``'s MLP; of [gate; up] it applies to the gate.

    ``openai_gelu`` overrides the name. megatron-core's fused bias-gelu and bias-geglu, which NeMo
    uses for gelu by default, compute the tanh approximation.

    Raises:
        ContentError: for a name NeMo does not know.
    """
    if arch.activation not in _FUNCTIONS:
        raise ContentError(
            f"model_config.yaml: activation is {arch.activation!r}; known are {', '.join(_FUNCTIONS)}."
        )
    return gelu_tanh if arch.gelu_is_tanh else _FUNCTIONS[arch.activation]


class Activation(MegatronModule):
    """What stands between fc1 and fc2, as megatron-core's spec wants it: a module of its own."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.function = config.activation_func
        self.gated = config.gated_linear_unit

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the activation of fc1's output [..., f], or of [gate; up] [..., 2f], as [..., f]."""
        if not self.gated:
            return self.function(hidden)
        if self.function is functional.silu and torch.is_grad_enabled():
            return _SwiGlu.apply(hidden)
        gate, up = hidden.chunk(2, -1)
        return self.function(gate) * up


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up; the backward pass writes both halves of the gradient in place."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        gate, up = hidden.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        gate, up = hidden.chunk(2, -1)
        grad = torch.empty_like(hidden)
        grad_gate, grad_up = grad.chunk(2, -1)
        torch.mul(grads[0], functional.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward(grads[0] * up, gate, grad_input=grad_gate)
        return grad
