"""RMSNorm and LayerNorm for megatron-core's spec, on CPU and CUDA alike.

megatron-core's own fallback refuses sequence parallelism and zero-centred gamma.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional


class Norm(nn.Module):
    """Normalisation over the last dimension, as ``config.normalization`` says.

    With ``config.layernorm_zero_centered_gamma`` the stored weight is gamma - 1.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.bias: nn.Parameter | None
        self.eps = eps
        self.is_rms = config.normalization == "RMSNorm"
        self.zero_centered = config.layernorm_zero_centered_gamma
        neutral = 0.0 if self.zero_centered else 1.0
        self.weight = nn.Parameter(torch.full((hidden_size,), neutral, dtype=config.params_dtype))
        bias = None
        if not self.is_rms:
            bias = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        self.register_parameter("bias", bias)
        for parameter in self.parameters():
            # Each tp rank sees its part of the sequence only: finalize_model_grads sums over tp.
            vars(parameter)["sequence_parallel"] = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden`` normalised, of the same shape and type."""
        if not self.zero_centered:
            return self._normalized(hidden, self.weight, self.bias)
        # 1 + w is rounded away in bf16, where steps near 1 are 2^-8, so it is done in fp32.
        bias = None if self.bias is None else self.bias.float()
        gamma = self.weight.float() + 1.0
        return self._normalized(hidden.float(), gamma, bias).to(hidden.dtype)

    def _normalized(self, hidden: Tensor, gamma: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_rms:
            return functional.rms_norm(hidden, gamma.shape, gamma, self.eps)
        return functional.layer_norm(hidden, gamma.shape, gamma, bias, self.eps)
