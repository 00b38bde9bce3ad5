"""A range of bytes of one file, read by handle or mapped into memory, never extracted.

What is in no plain file (inside a gzip stream, on a server) is read through a medium instead.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.store import Index, TensorInfo, bounds_of
from nemoalign.errors import SourceError


class Medium(Protocol):
    """Where bytes are that cannot be mapped."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of a range that lies inside."""
        ...


@dataclass(frozen=True)
class Region:
    """``size`` bytes at ``offset`` of the file ``path``: one member of an archive, or a part."""

    path: Path
    offset: int
    size: int
    medium: Medium | None = None
    """What reads the bytes when they do not lie in ``path`` as they are."""

    def part(self, start: int, size: int) -> Region:
        """Return a sub-range; raises SourceError when it does not lie inside this one."""
        if start < 0 or size < 0 or start + size > self.size:
            raise SourceError(
                f"{self.path} points at bytes {start} to {start + size} of a member that has only "
                f"{self.size}. The file is truncated or damaged: fetch it again."
            )
        return Region(self.path, self.offset + start, size, self.medium)

    def map(self, start: int = 0, size: int | None = None) -> Array:
        """Return bytes as a read-only mapped uint8 array; the mapping ends when the array dies."""
        wanted = self.part(start, self.size - start if size is None else size)
        if wanted.size == 0:
            return np.empty(0, np.uint8)
        if self.medium is not None:
            return np.frombuffer(self.medium.read(wanted.offset, wanted.size), np.uint8)
        page_start = wanted.offset - wanted.offset % mmap.ALLOCATIONGRANULARITY
        lead = wanted.offset - page_start
        handle = self._open(wanted.offset + wanted.size)
        try:
            mapped = mmap.mmap(
                handle, lead + wanted.size, access=mmap.ACCESS_READ, offset=page_start
            )
        finally:
            os.close(handle)
        return np.frombuffer(mapped, np.uint8, wanted.size, lead)

    def bytes(self, start: int, size: int) -> bytes:
        """Return a copy of a short range."""
        wanted = self.part(start, size)
        if self.medium is not None:
            return self.medium.read(wanted.offset, wanted.size)
        handle = self._open(wanted.offset + wanted.size)
        try:
            return os.pread(handle, wanted.size, wanted.offset)
        finally:
            os.close(handle)

    def read(self, limit: int) -> bytes:
        """Return everything; raises SourceError when that is more than ``limit`` bytes."""
        if self.size > limit:
            raise SourceError(
                f"A member of {self.path} that should be small has {self.size} bytes; at most "
                f"{limit} are read. The file is damaged or not a checkpoint."
            )
        return self.bytes(0, self.size)

    def _open(self, end: int) -> int:
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise SourceError(
                f"{self.path} cannot be read: {error.strerror}. Check the path and permissions."
            ) from error
        # A file cut after it was opened would end the process with SIGBUS when the map is touched.
        if os.fstat(handle).st_size < end:
            os.close(handle)
            raise SourceError(
                f"{self.path} became shorter than its index says ({end} bytes are needed). Fetch "
                "it again and do not write to it meanwhile."
            )
        return handle


def map_tensor(region: Region, start: int, info: TensorInfo, index: Index = ()) -> Array:
    """Return a slice of the row-major tensor that begins ``start`` bytes into ``region``.

    Only the bytes from the first to the last selected element are mapped; nothing is copied.
    """
    return map_strided(region, start, info, row_major_strides(info.shape), index)


def map_strided(
    region: Region, start: int, info: TensorInfo, strides: tuple[int, ...], index: Index = ()
) -> Array:
    """Return a slice of a tensor whose neighbours in each dimension are ``strides`` elements apart.

    Raises SourceError when an element lies outside of ``region``, or when the tensor repeats
    elements so that it is larger than its bytes (no checkpoint does, and a copy could be huge).
    """
    kind = dtype(info.dtype)
    region.part(start, info.size_bytes)
    bounds = bounds_of(info.shape, index)
    extent = tuple(stop - first for first, stop in bounds)
    if 0 in extent:
        return np.empty(extent, kind.numpy)
    steps = tuple(step * kind.itemsize for step in strides)
    begin = sum(first * step for (first, _), step in zip(bounds, steps, strict=True))
    last = sum((stop - 1) * step for (_, stop), step in zip(bounds, steps, strict=True))
    raw = region.map(start + begin, last - begin + kind.itemsize)
    return np.ndarray(extent, kind.numpy, raw, strides=steps)


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the elements between neighbours in each dimension of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))
