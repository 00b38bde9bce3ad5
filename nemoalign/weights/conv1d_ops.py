"""Operations on the weights of GPT-2, which keeps every linear layer transposed (``Conv1D``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ShapeError
from nemoalign.weights.ops import Array, FuseQKV, Op, Shape


@dataclass(frozen=True)
class Transpose(Op):
    """The same matrix with rows and columns exchanged; a bias stays as it is."""

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return the one part, transposed."""
        del arch
        (part,) = parts
        return np.ascontiguousarray(part.T)

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return the tensor, transposed."""
        del arch, vocab_size
        return (np.ascontiguousarray(array.T),)

    def hf_shapes(self, shape: Shape, arch: Architecture, vocab_size: int) -> tuple[Shape, ...]:
        """Return the sizes in the other order."""
        del arch, vocab_size
        return (shape[::-1],)


@dataclass(frozen=True)
class FuseTransposedQKV(Transpose):
    """GPT-2's one matrix [hidden, query | key | value], packed per head as ``FuseQKV`` packs it."""

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return the packed tensor [rows of linear_qkv, hidden], or its bias."""
        (whole,) = parts
        if whole.shape[-1] != arch.qkv_rows:
            raise ShapeError(
                f"The query, key and value matrix has shape {list(whole.shape)}; its last size "
                f"should be {arch.qkv_rows}."
            )
        shapes = FuseQKV().hf_shapes((arch.qkv_rows,), arch, 0)
        ends = np.cumsum([rows for (rows,) in shapes])[:-1]
        return FuseQKV().to_megatron(np.split(whole.T, ends), arch)

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return [hidden, query | key | value], or the bias."""
        whole = np.concatenate(FuseQKV().to_hf(array, arch, vocab_size))
        return (np.ascontiguousarray(whole.T),)
