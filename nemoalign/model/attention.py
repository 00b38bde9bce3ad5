"""Core attention on torch's scaled_dot_product_attention, which never holds the scores on CUDA or CPU.

megatron-core's own fallback materialises them, and the fused one needs Transformer Engine.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Self

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor, nn
from torch.nn import functional

from nemoalign.parallel.cpu_bf16 import lacks_bf16_products
from nemoalign.parallel.state import model_parallel_stream


@dataclass
class Documents(PackedSeqParams):
    """The documents of a pack [s, 1, ...].

    megatron-core's layers hand it on. They are told sbhd, its word for rows that are not packed,
    because thd, its word for packs, asks for Transformer Engine's kernels.
    """

    lengths: tuple[int, ...] = ()
    """On the host, where cutting a pack needs them."""

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Self:
        """Return documents of these lengths, one behind the other."""
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(
            qkv_format="sbhd",
            cu_seqlens_q=starts,
            cu_seqlens_kv=starts,
            max_seqlen_q=max(lengths),
            max_seqlen_kv=max(lengths),
            lengths=lengths,
        )

    def attend(self, core: CoreAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the context [s, 1, heads * d] of a pack [s, 1, n, d] in one layer."""
        return core.attend_documents(query, key, value, self)

    def runs(self) -> list[tuple[int, int]]:
        """Return neighbours of the same length as (how many, length): a batch that needs no copy."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]


class CoreAttention(nn.Module):
    """Grouped-query attention, causal unless told otherwise, with an optional sliding window."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_number = layer_number
        dropout = options.get("attention_dropout")
        self.dropout = config.attention_dropout if dropout is None else dropout
        self.scale = options.get("softmax_scale")
        self.softcap: float | None = vars(config).get("attn_logit_softcapping")
        skipped: Any = config.window_attn_skip_freq
        has_window = is_layer_window_attention(config.window_size, skipped, layer_number)
        self.window = config.window_size[0] if config.window_size and has_window else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Return the context [s_q, b, heads * d] of ``query`` [s_q, b, heads, d].

        ``key`` and ``value`` are [s_k, b, groups, d]. ``attention_mask`` is megatron-core's: boolean,
        broadcastable to [b, 1, s_q, s_k], True where a key is hidden; it replaces the causal mask
        and the window. Without it a single query sees every key: that is decoding. With
        ``packed_seq_params`` the row is a pack whose documents do not see each other.
        """
        documents: Documents | None = options.get("packed_seq_params")
        if documents is not None:
            return documents.attend(self, query, key, value)
        queries, keys = query.shape[0], key.shape[0]
        visible = None if attention_mask is None else ~attention_mask
        if attention_mask is None and queries > 1:
            assert queries == keys, "a prefill in chunks needs an explicit mask"
            visible = self._window_mask(queries, query.device)
        is_causal = visible is None and queries > 1
        context = self._attend(query, key, value, visible, is_causal)
        return context.permute(2, 0, 1, 3).reshape(queries, query.shape[1], -1)

    def attend_documents(
        self, query: Tensor, key: Tensor, value: Tensor, documents: Documents
    ) -> Tensor:
        """Return the context [s, 1, heads * d] of a pack [s, 1, heads, d]."""
        # A view of q, k and v together would keep all three until the backward pass.
        value = value.contiguous()
        if self._fits_varlen(query):
            return self._attend_varlen(query, key, value, documents)
        contexts: list[Tensor] = []
        runs = documents.runs()
        # split, not slices: its backward pass is one concatenation.
        parts = (t.split([count * length for count, length in runs]) for t in (query, key, value))
        for (count, length), *pack in zip(runs, *parts, strict=True):
            # [count * s, 1, n, d] -> [s, count, n, d]
            q, k, v = (t.view(count, length, *t.shape[2:]).transpose(0, 1) for t in pack)
            visible = self._window_mask(length, query.device)
            context = self._attend(q, k, v, visible, is_causal=visible is None)
            contexts.append(context.transpose(1, 2).reshape(count * length, 1, -1))
        return torch.cat(contexts)

    def _fits_varlen(self, query: Tensor) -> bool:
        """True where torch's flash attention over documents serves: half precision on a recent card."""
        if query.device.type != "cuda" or self.softcap or (self.dropout and self.training):
            return False
        width, is_half = query.shape[-1], query.dtype in (torch.bfloat16, torch.float16)
        is_recent = torch.cuda.get_device_capability(query.device) >= (8, 0)
        return is_half and is_recent and width % 8 == 0 and width <= 256 and bool(_varlen_kernel())

    def _attend_varlen(
        self, query: Tensor, key: Tensor, value: Tensor, documents: Documents
    ) -> Tensor:
        starts, longest = documents.cu_seqlens_q, documents.max_seqlen_q
        context: Tensor = _varlen_kernel()(
            *(t.squeeze(1) for t in (query, key, value)),
            *(starts, starts, longest, longest),
            scale=self.scale,
            window_size=(-1 if self.window is None else self.window, 0),
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return context.reshape(context.shape[0], 1, -1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Return the context [b, heads, s_q, d]."""
        dtype = query.dtype
        if dtype is torch.bfloat16 and query.device.type == "cpu" and lacks_bf16_products():
            query, key, value = query.float(), key.float(), value.float()
        # [s, b, n, d] -> [b, n, s, d]
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        return self.attend_keys(query, key, value, visible, is_causal=is_causal).to(dtype)

    def attend_keys(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor | None,
        *,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the context [b, heads, s_q, d] of ``query`` of that shape.

        ``key`` and ``value`` are [b, groups, s_k, d]; ``visible`` is broadcastable to [b, heads, s_q, s_k].
        """
        if self.softcap:
            return self._attend_capped(query, key, value, visible, is_causal)
        with self._dropout_stream():
            return functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=visible,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=is_causal,
                scale=self.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )

    def _attend_capped(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Return the context [b, heads, s_q, d] of scores that tanh keeps below the cap."""
        assert self.softcap, "the caller asks only for capped scores"
        heads = query.shape[1] // key.shape[1]
        keys, values = (t.repeat_interleave(heads, 1) for t in (key, value))
        scale = self.scale or query.shape[-1] ** -0.5
        scores = query @ keys.transpose(-1, -2) * scale  # [b, n, s_q, s_k]
        scores = self.softcap * torch.tanh(scores / self.softcap)
        if is_causal:
            visible = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
        if visible is not None:
            scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
        with self._dropout_stream():
            weights = functional.dropout(weights, self.dropout, self.training)
        return weights @ values

    def _dropout_stream(self) -> Any:
        """Return the stream to drop from: tp ranks hold different heads, so it differs between them.

        With sequence parallelism the whole block already runs in that stream.
        """
        if self.dropout and self.training and not self.config.sequence_parallel:
            return model_parallel_stream()
        return nullcontext()

    def _window_mask(self, length: int, device: torch.device) -> Tensor | None:
        """Return which keys are visible, or None where the window hides nothing."""
        if self.window is None or length <= self.window + 1:
            return None
        return _banded(length, self.window, device)


@functools.cache
def _varlen_kernel() -> Any:
    """Return torch's flash attention over documents, or None where this torch has none with windows."""
    try:
        kernel = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        return None
    return kernel if "window_size" in inspect.signature(kernel).parameters else None


@functools.lru_cache(maxsize=8)
def _banded(length: int, window: int, device: torch.device) -> Tensor:
    """Return [length, length], True for the query's own position and the ``window`` before it."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril().triu(-window)
