"""The parts of a layer that not every family has: experts, and norms behind linear layers."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemoalign.errors import ConfigError
from nemoalign.model.activation import Activation
from nemoalign.model.linear import ColumnLinear, RowLinear
from nemoalign.model.norm import Norm


class NormedRowLinear(RowLinear):
    """A row-parallel layer with a norm behind it, as Gemma 2 has before each residual sum."""

    def __init__(self, *args: Any, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(*args, config=config, **kwargs)
        self.post_layernorm = Norm(config, self.output_size, config.layernorm_epsilon)

    def forward(self, input_: Tensor) -> Any:
        """Return the normalised output, and the bias that is added later."""
        output, bias = super().forward(input_)
        return self.post_layernorm(output), bias


def mlp_spec(config: TransformerConfig, row_linear: type[RowLinear]) -> ModuleSpec:
    """Return a layer's MLP, or its router and experts, one after the other, where it has experts."""
    linears = MLPSubmodules(
        linear_fc1=ColumnLinear, linear_fc2=row_linear, activation_func=Activation
    )
    if not config.num_moe_experts:
        return ModuleSpec(module=MLP, submodules=linears)
    experts = ModuleSpec(module=SequentialMLP, submodules=linears)
    return ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=experts))


def refuse_adapter(name: str, linear: nn.Module | None) -> None:
    """Refuse an adapter beside experts, or before a norm that a merged weight would pass through.

    Raises:
        ConfigError: naming the target that works.
    """
    if linear is None or hasattr(linear, "post_layernorm"):
        found = "an MLP of experts" if linear is None else "a norm behind that layer"
        raise ConfigError(
            f"--lora-targets includes {name}, but this model has {found}, where no adapter can be "
            "put. Use --lora-targets attention_qkv."
        )
