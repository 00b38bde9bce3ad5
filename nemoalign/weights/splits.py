"""How tensor parallelism cuts one tensor: pure arithmetic on shapes, with an exact inverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemoalign.errors import ShapeError

Array = NDArray[Any]
Index = tuple[slice, ...]


@dataclass(frozen=True)
class Split:
    """A cut along ``dim`` (None: every rank holds the whole tensor) of ``runs`` equal runs.

    ``runs`` is 2 for [gate; up]: rank i needs gate rows i and up rows i, not one run of fused rows.
    """

    dim: int | None
    runs: int = 1

    def pieces(self, shape: Sequence[int], tp: int, rank: int) -> tuple[Index, ...]:
        """Return the regions of the whole tensor that, joined along ``dim``, are the shard of ``rank``.

        Raises:
            ShapeError: when the dimension does not divide by ``runs`` x ``tp``.
        """
        if self.dim is None or tp == 1:
            return (tuple(slice(0, size) for size in shape),)
        size = shape[self.dim]
        if size % (self.runs * tp):
            raise ShapeError(
                f"A tensor of shape {tuple(shape)} cannot be cut for --tp {tp}: dimension {self.dim} "
                f"is {size}, which does not divide by {self.runs * tp}."
            )
        run, part = size // self.runs, size // self.runs // tp
        starts = [index * run + rank * part for index in range(self.runs)]
        return tuple(self._region(shape, start, start + part) for start in starts)

    def sources(
        self, shape: Sequence[int], tp: int, wanted: tuple[int, int]
    ) -> list[tuple[int, slice]]:
        """Return the ranks, and the parts of their shards, that joined are a part of the whole.

        ``wanted`` is first and one-past-last along ``dim`` of a whole tensor of ``shape``; the parts
        come in that order. Inverse of ``pieces``.

        Raises:
            ShapeError: when the dimension does not divide by ``runs`` x ``tp``.
        """
        assert self.dim is not None, "every rank holds the whole of a replicated tensor"
        start, stop = wanted
        found: list[tuple[int, int, slice]] = []
        for rank in range(tp):
            at = 0  # where the piece begins in the shard
            for piece in self.pieces(shape, tp, rank):
                begin, end = piece[self.dim].start, piece[self.dim].stop
                first, last = max(begin, start), min(end, stop)
                if first < last or (first == last and not found):
                    found.append((first, rank, slice(at + first - begin, at + last - begin)))
                at += end - begin
        whole = [part for part in found if part[2].start < part[2].stop] or found[:1]
        return [(rank, part) for _, rank, part in sorted(whole, key=lambda item: item[0])]

    def _region(self, shape: Sequence[int], start: int, stop: int) -> Index:
        return tuple(
            slice(start, stop) if dim == self.dim else slice(0, size)
            for dim, size in enumerate(shape)
        )

    def shard_shape(self, shape: Sequence[int], tp: int) -> tuple[int, ...]:
        """Return the shape of one rank's shard of a tensor of ``shape``."""
        if self.dim is None:
            return tuple(shape)
        return tuple(size // tp if dim == self.dim else size for dim, size in enumerate(shape))

    def whole_shape(self, shape: Sequence[int], tp: int) -> tuple[int, ...]:
        """Return the shape of the whole tensor whose shards have ``shape``."""
        return tuple(size * tp if dim == self.dim else size for dim, size in enumerate(shape))

    def split(self, array: Array, tp: int) -> list[Array]:
        """Return the ``tp`` shards of a whole tensor, rank 0 first. Inverse of ``join``.

        Raises:
            ShapeError: when the dimension does not divide.
        """
        shards: list[Array] = []
        for rank in range(tp):
            pieces = [array[region] for region in self.pieces(array.shape, tp, rank)]
            shards.append(pieces[0] if len(pieces) == 1 else np.concatenate(pieces, self.dim or 0))
        return shards

    def join(self, shards: Sequence[Array]) -> Array:
        """Return the whole tensor from its shards, rank 0 first. Inverse of ``split``.

        Raises:
            ShapeError: when a shard does not divide into its runs.
        """
        if self.dim is None or len(shards) == 1:
            return shards[0]
        if self.runs == 1:
            return np.concatenate(shards, self.dim)
        if any(shard.shape[self.dim] % self.runs for shard in shards):
            raise ShapeError(
                f"A shard of shape {shards[0].shape} does not hold {self.runs} equal runs along "
                f"dimension {self.dim}."
            )
        runs = [np.split(shard, self.runs, self.dim) for shard in shards]
        ordered = [shard_runs[run] for run in range(self.runs) for shard_runs in runs]
        return np.concatenate(ordered, self.dim)


REPLICATED = Split(None)
ROWS = Split(0)
COLUMNS = Split(1)
GATED_ROWS = Split(0, runs=2)
