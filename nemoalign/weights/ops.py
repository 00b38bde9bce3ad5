"""How Hugging Face tensors become Megatron tensors and back: a small closed set of exact operations.

Every operation is pure, works on any dtype (bfloat16 is held as uint16) and has an inverse. ``runs``
returns what ``to_megatron`` would stack along dim 0 without stacking it, so that a writer can stream
the runs one after the other and copy nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ShapeError

Array = NDArray[Any]
Shape = tuple[int, ...]


class Op(Protocol):
    """One exact operation between the tensors of a Hugging Face model and one Megatron tensor."""

    def runs(self, parts: Sequence[Array], arch: Architecture) -> tuple[Array, ...]:
        """Return the arrays that, stacked along dim 0, are the Megatron tensor: one, unless it is cheaper."""
        return (self.to_megatron(parts, arch),)

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return the Megatron tensor made of the Hugging Face ``parts``. Inverse of ``to_hf``."""
        ...

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return the Hugging Face tensors inside a Megatron tensor. Inverse of ``to_megatron``."""
        ...

    def hf_shapes(self, shape: Shape, arch: Architecture, vocab_size: int) -> tuple[Shape, ...]:
        """Return the shapes of the Hugging Face parts of a Megatron tensor of ``shape``."""
        ...

    @property
    def keeps_rows(self) -> bool:
        """True when the parts are the tensor's rows one part after the other: they can be read alone."""
        return False


@dataclass(frozen=True)
class Copy(Op):
    """The same tensor under another name."""

    @property
    def keeps_rows(self) -> bool:
        """The one part is every row."""
        return True

    def runs(self, parts: Sequence[Array], arch: Architecture) -> tuple[Array, ...]:
        """Return the one part."""
        del arch
        (part,) = parts
        return (part,)

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return the one part."""
        return self.runs(parts, arch)[0]

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return the tensor itself."""
        del arch, vocab_size
        return (array,)

    def hf_shapes(self, shape: Shape, arch: Architecture, vocab_size: int) -> tuple[Shape, ...]:
        """Return the same shape."""
        del arch, vocab_size
        return (shape,)


@dataclass(frozen=True)
class FuseQKV(Op):
    """Query, key and value projections (weights or biases), packed per query group.

    Rows of the Megatron tensor are [groups, heads per group + 2, head_dim]: for each group its query
    heads, then its key head, then its value head.
    """

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return (q, k, v) packed into one tensor of ``arch.qkv_rows`` rows."""
        groups, width = arch.query_groups, arch.head_dim
        shape = (arch.qkv_rows, *parts[0].shape[1:])
        for part, expected in zip(parts, self.hf_shapes(shape, arch, 0), strict=True):
            _same_shape(part.shape, expected, "q, k or v projection")
        # [heads * d, ...] -> [groups, heads per group, d, ...]
        views = [part.reshape(groups, -1, width, *part.shape[1:]) for part in parts]
        return np.concatenate(views, axis=1).reshape(shape)

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return (q, k, v) unpacked from one tensor of ``arch.qkv_rows`` rows."""
        _same_shape(array.shape[:1], (arch.qkv_rows,), "linear_qkv")
        groups, width = arch.query_groups, arch.head_dim
        per_group = arch.num_attention_heads // groups
        packed = array.reshape(groups, per_group + 2, width, *array.shape[1:])
        cuts = (packed[:, :per_group], packed[:, per_group], packed[:, per_group + 1])
        shapes = self.hf_shapes(array.shape, arch, vocab_size)
        return tuple(cut.reshape(shape) for cut, shape in zip(cuts, shapes, strict=True))

    def hf_shapes(self, shape: Shape, arch: Architecture, vocab_size: int) -> tuple[Shape, ...]:
        """Return the shapes of q, k and v."""
        del vocab_size
        queries = arch.num_attention_heads * arch.head_dim
        keys = arch.query_groups * arch.head_dim
        return tuple((rows, *shape[1:]) for rows in (queries, keys, keys))


@dataclass(frozen=True)
class FuseGateUp(Op):
    """The two input projections of a gated MLP, stacked as [gate; up]."""

    @property
    def keeps_rows(self) -> bool:
        """First the gate, then up."""
        return True

    def runs(self, parts: Sequence[Array], arch: Architecture) -> tuple[Array, ...]:
        """Return (gate, up)."""
        del arch
        gate, up = parts
        _same_shape(up.shape, gate.shape, "up projection")
        return (gate, up)

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return [gate; up]."""
        return np.concatenate(self.runs(parts, arch))

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return (gate, up) as views of [gate; up]."""
        rows = self.hf_shapes(array.shape, arch, vocab_size)[0][0]
        return (array[:rows], array[rows:])

    def hf_shapes(self, shape: Shape, arch: Architecture, vocab_size: int) -> tuple[Shape, ...]:
        """Return the two halves' shapes."""
        del arch, vocab_size
        if shape[0] % 2:
            raise ShapeError(f"A gated linear_fc1 has an even number of rows, not {shape[0]}.")
        half = (shape[0] // 2, *shape[1:])
        return (half, half)


@dataclass(frozen=True)
class PadVocab(Op):
    """An embedding or output table whose rows at or above the vocabulary mean nothing."""

    @property
    def keeps_rows(self) -> bool:
        """The real vocabulary comes first."""
        return True

    def runs(self, parts: Sequence[Array], arch: Architecture) -> tuple[Array, ...]:
        """Return the table and, where the padded size asks for them, rows of zeros."""
        (table,) = parts
        missing = arch.padded_vocab_size(table.shape[0]) - table.shape[0]
        if missing <= 0:
            return (table,)
        return (table, np.zeros((missing, *table.shape[1:]), table.dtype))

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return the table with rows of zeros up to the padded vocabulary of one rank."""
        runs = self.runs(parts, arch)
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return the rows of the real vocabulary."""
        del arch
        if array.shape[0] < vocab_size:
            raise ShapeError(
                f"The vocabulary has {vocab_size} entries but the table only {array.shape[0]} rows."
            )
        return (array[:vocab_size],)

    def hf_shapes(self, shape: Shape, arch: Architecture, vocab_size: int) -> tuple[Shape, ...]:
        """Return the table's shape with the real vocabulary's rows."""
        del arch
        return ((vocab_size, *shape[1:]),)


@dataclass(frozen=True)
class Absent(Op):
    """A tensor Hugging Face's model does not have: zeros on the way in, left out on the way back."""

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Fail: nothing is made of no parts; whoever knows the shape makes the zeros."""
        raise AssertionError("a tensor that Hugging Face lacks has no parts")

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return nothing."""
        del array, arch, vocab_size
        return ()

    def hf_shapes(self, shape: Shape, arch: Architecture, vocab_size: int) -> tuple[Shape, ...]:
        """Return nothing."""
        del shape, arch, vocab_size
        return ()


def _same_shape(found: Sequence[int], expected: Sequence[int], what: str) -> None:
    if tuple(found) != tuple(expected):
        raise ShapeError(
            f"The {what} has shape {tuple(found)} where {tuple(expected)} is expected."
        )
