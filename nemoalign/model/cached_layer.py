"""A transformer layer that continues cached rows without what only training needs.

megatron-core's own way through a layer costs more than the products of a token: scopes for offloading,
fusions, ranges for a profiler, and the rotary angles of every layer anew.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemoalign.model.cache import CachedDocuments


class CachedLayer(TransformerLayer):
    """megatron-core's layer; for rows of a cache the same in few words."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output [s, b, h], and no context of another model."""
        documents = kwargs.get("packed_seq_params")
        if not isinstance(documents, CachedDocuments):
            return super().forward(hidden_states, *args, **kwargs)
        return self._continue(hidden_states, documents, kwargs["rotary_pos_emb"]), None

    def _continue(
        self, hidden: Tensor, documents: CachedDocuments, angles: Tensor | None
    ) -> Tensor:
        attention: Any = self.self_attention
        heads = attention.get_query_key_value_tensors(self.input_layernorm(hidden), None)
        query, key, value = heads
        if angles is not None:
            interleaved = self.config.rotary_interleaved
            turn = documents.rotation(angles, query.dtype, interleaved=interleaved)
            query, key = turn(query), turn(key)
        context = documents.attend(attention.core_attention, query, key, value)
        hidden = _added(hidden, *attention.linear_proj(context))
        return _added(hidden, *self.mlp(self.pre_mlp_layernorm(hidden)))


def _added(hidden: Tensor, output: Tensor, bias: Tensor | None) -> Tensor:
    return hidden + (output if bias is None else output + bias)
