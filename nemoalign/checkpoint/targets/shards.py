"""What each tensor-parallel rank holds of a source's tensors, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.store import Index, TensorInfo, TensorStore, bounds_of
from nemoalign.checkpoint.sources.source import EMBEDDING, HEAD, Source
from nemoalign.checkpoint.sources.stores import JoinedStore, PlacedStore, UnionStore
from nemoalign.weights.splits import Split
from nemoalign.weights.tensors import split_of


@dataclass(frozen=True)
class Piece:
    """A part of a whole tensor, at ``offsets``, that belongs to one rank or, None, to all alike."""

    rank: int | None
    offsets: tuple[int, ...]
    array: Array


class Shards:
    """The tensors of ``source`` cut for ``tp`` ranks; the vocabulary is padded anew, with zeros."""

    def __init__(self, source: Source, tp: int) -> None:
        self.tp = tp
        self._arch = source.arch
        self._store = PaddedStore(source, tp)
        # A slice of what is computed costs as much as all of it.
        self._sliced = isinstance(source.weights, PlacedStore | JoinedStore)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, whole, as it will be written."""
        return self._store.tensors

    def split(self, name: str) -> Split:
        """Return how a tensor is cut."""
        return split_of(name, self._arch)

    def shard_info(self, name: str) -> TensorInfo:
        """Return shape and element type of one rank's part of a tensor."""
        info = self.tensors[name]
        return TensorInfo(self.split(name).shard_shape(info.shape, self.tp), info.dtype)

    def pieces(self, name: str) -> Iterator[Piece]:
        """Yield the parts of a tensor, rank 0 first; together they are every element once."""
        split, shape = self.split(name), self.tensors[name].shape
        whole = None if self._sliced else self._store.read(name)
        for rank in range(1 if split.dim is None else self.tp):
            for region in split.pieces(shape, self.tp, rank):
                part = self._store.read(name, region) if whole is None else whole[region]
                offsets = tuple(bound.start for bound in region)
                yield Piece(None if split.dim is None else rank, offsets, part)

    def shards(self, name: str) -> Iterator[Array]:
        """Yield what each rank holds of a tensor, rank 0 first, one in memory at a time."""
        split = self.split(name)
        held: list[Array] = []
        for piece in self.pieces(name):
            held.append(piece.array)
            if split.dim is None:
                yield from held * self.tp
            elif len(held) == split.runs or self.tp == 1:
                yield held[0] if len(held) == 1 else np.concatenate(held, split.dim)
                held = []


def all_tensors(source: Source) -> TensorStore:
    """Return everything a checkpoint holds: its model, its adapter, or both."""
    if source.adapter is None:
        return source.weights
    if source.is_adapter_only:
        return source.adapter.weights
    return UnionStore(source.weights, source.adapter.weights)


class PaddedStore:
    """A source's tensors with as many rows of the vocabulary as a layout asks for.

    Rows of the real vocabulary are kept; all behind them are zero.
    """

    def __init__(self, source: Source, tp: int) -> None:
        self._store: TensorStore = source.weights
        self._real = source.vocab_size
        rows = source.arch.padded_vocab_size(source.vocab_size, tp)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo((rows, *info.shape[1:]), info.dtype)
            if name in (EMBEDDING, HEAD)
            else info
            for name, info in self._store.tensors.items()
        }

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it."""
        if name not in (EMBEDDING, HEAD):
            return self._store.read(name, index)
        info = self.tensors[name]
        (start, stop), *rest = bounds_of(info.shape, index)
        last = min(stop, self._real)
        columns = tuple(slice(*bound) for bound in rest)
        if last == stop:
            return self._store.read(name, (slice(start, stop), *columns))
        shape = (stop - start, *(end - first for first, end in rest))
        padded = np.zeros(shape, dtype(info.dtype).numpy)
        if start < last:
            padded[: last - start] = self._store.read(name, (slice(start, last), *columns))
        return padded
