"""What every checkpoint looks like from above: a lazily readable mapping of named tensors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nemoalign.archive.dtypes import Array, dtype
from nemoalign.errors import ShapeError, SourceError

DAMAGED = "The file is damaged or was made to mislead: fetch it again from where it came."

Index = tuple[slice, ...]
"""Slices of leading dimensions, step 1; missing trailing dimensions are taken whole."""

Bounds = tuple[tuple[int, int], ...]
"""First and one-past-last element of every dimension."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and element type (torch's name) of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Number of bytes of the elements, without any padding."""
        return self.size * dtype(self.dtype).itemsize


class TensorStore(Protocol):
    """Named tensors on disk; nothing is read before ``read``."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name in the file."""
        ...

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor, or the slice ``index`` of it, as read-only raw storage.

        A zero-copy view of the file where the bytes allow; the mapping ends when the array dies.
        """
        ...


MAX_DIMENSIONS = 32
MAX_ELEMENTS = 1 << 50
"""More than any checkpoint holds, and small enough that sizes in bytes never overflow."""


def checked_shape(lengths: Iterable[object], where: str) -> tuple[int, ...]:
    """Return the lengths of a shape that a file states; SourceError unless numpy can hold it."""
    shape: list[int] = []
    for length in lengths:
        if type(length) is not int or length < 0:
            stated = length if type(length) is int else f"a {type(length).__name__}"
            raise SourceError(f"{where} states {stated} as the length of an axis. {DAMAGED}")
        shape.append(length)
    if len(shape) > MAX_DIMENSIONS or math.prod(max(length, 1) for length in shape) > MAX_ELEMENTS:
        raise SourceError(f"{where} states an impossible shape of {len(shape)} axes. {DAMAGED}")
    return tuple(shape)


def bounds_of(shape: tuple[int, ...], index: Index) -> Bounds:
    """Return the range that ``index`` selects in each dimension of ``shape``; step must be 1."""
    if len(index) > len(shape):
        raise ShapeError(f"An index of {len(index)} slices does not fit the shape {list(shape)}.")
    whole = index + (slice(None),) * (len(shape) - len(index))
    ranges: list[tuple[int, int]] = []
    for length, part in zip(shape, whole, strict=True):
        start, stop, step = part.indices(length)
        assert step == 1, "slices of stored tensors have step 1"
        ranges.append((start, max(start, stop)))
    return tuple(ranges)


def checksum_array(array: Array) -> int:
    """Return the CRC-32 of the elements in row-major order, as zip files carry it."""
    return zlib.crc32(as_bytes(array))


def as_bytes(array: Array) -> memoryview:
    """Return the elements in row-major order as flat bytes, without a copy when contiguous."""
    contiguous = np.ascontiguousarray(array)
    return contiguous.reshape(-1).view(np.uint8).data
