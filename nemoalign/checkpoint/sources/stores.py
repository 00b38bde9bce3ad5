"""Views of tensors on disk under canonical names: stacked layers, rank shards, Hugging Face parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemoalign.archive.dtypes import Array
from nemoalign.archive.dtypes import dtype as element_type
from nemoalign.archive.store import Index, TensorInfo, TensorStore, bounds_of
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError
from nemoalign.weights.rules import TensorPlan
from nemoalign.weights.splits import Split


@dataclass(frozen=True)
class Place:
    """Where a canonical tensor is: a key of a store and, when tensors are stacked, its place there.

    ``at`` is the layer, the expert or both, as the leading dimensions of the stack are.
    """

    store: TensorStore
    key: str
    at: tuple[int, ...] = ()

    @property
    def info(self) -> TensorInfo:
        """Shape and element type of this one tensor."""
        info = self.store.tensors[self.key]
        return TensorInfo(info.shape[len(self.at) :], info.dtype)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names on disk: two where gate and up are apart."""
        return self.store.halves(self.key) if isinstance(self.store, FusedStore) else (self.key,)

    def read(self, index: Index = ()) -> Array:
        """Return the tensor or a slice of it."""
        lead = tuple(slice(number, number + 1) for number in self.at)
        return self.store.read(self.key, (*lead, *index))[(0,) * len(lead)]


class PlacedStore:
    """Tensors that each lie whole in one place."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = places
        self.tensors: Mapping[str, TensorInfo] = {n: place.info for n, place in places.items()}

    def place(self, name: str) -> Place:
        """Return where a tensor is."""
        return self._places[name]

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it; no copy where the file allows."""
        return self._places[name].read(index)


class JoinedStore:
    """Tensors whose shards lie in the files of several tensor-parallel ranks."""

    def __init__(self, shards: Mapping[str, tuple[Split, Sequence[Place]]]) -> None:
        self._shards = shards
        self.tensors: Mapping[str, TensorInfo] = {
            name: _joined_info(name, split, places) for name, (split, places) in shards.items()
        }

    @property
    def keys(self) -> list[str]:
        """The names of the tensors in the files of the first ranks."""
        firsts = (places[0] for _, places in self._shards.values())
        return [key for place in firsts for key in place.keys]

    def files(self) -> list[TensorStore]:
        """Return the files of the first tensor-parallel rank of every stage."""
        return list({id(p[0].store): p[0].store for _, p in self._shards.values()}.values())

    def read(self, name: str, index: Index = ()) -> Array:
        """Return the joined tensor or a slice of it; of shards outside the slice nothing is read.

        Raises:
            ContentError: when ranks hold different values of a tensor they all must share.
        """
        split, places = self._shards[name]
        if len(places) == 1:
            return places[0].read(index)
        if split.dim is None:
            return _equal_copies(name, places)[index]
        shape = self.tensors[name].shape
        bounds = bounds_of(shape, index)
        rest = [slice(*bound) for bound in bounds]
        parts = [
            places[rank].read((*rest[: split.dim], inside, *rest[split.dim + 1 :]))
            for rank, inside in split.sources(shape, len(places), bounds[split.dim])
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, split.dim)

    def replicated(self) -> list[str]:
        """Return the tensors that several ranks hold whole, and must hold with the same values."""
        shards = self._shards.items()
        return [name for name, (split, places) in shards if split.dim is None and len(places) > 1]


class UnionStore:
    """The tensors of two stores of one checkpoint: a base model and its adapter."""

    def __init__(self, first: TensorStore, second: TensorStore) -> None:
        self._first = first
        self._second = second
        self.tensors: Mapping[str, TensorInfo] = {**first.tensors, **second.tensors}

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it."""
        store = self._first if name in self._first.tensors else self._second
        return store.read(name, index)


_HALVES = (
    (".weight_w", ".weight_v", ".weight"),
    (".bias_w", ".bias_v", ".bias"),
    (".dense_h_to_4h.", ".dense_h_to_4h_2.", ".dense_h_to_4h."),
)
"""What tells the names of gate, of up and of both joined apart."""


def fused(store: TensorStore) -> TensorStore:
    """Return ``store``, or a view of it that joins gate and up where they are tensors apart."""
    view = FusedStore(store)
    return view if view.is_fused else store


class FusedStore:
    """A store whose gated matrices lie in two tensors, shown as one: gate above up.

    megatron-core's ``singleton_local_shards`` writes ``linear_fc1.weight_w`` and ``weight_v``, NeMo's
    own GPT with a glu that is not ``fast-`` has ``dense_h_to_4h`` and ``dense_h_to_4h_2``.
    """

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self._halves: dict[str, tuple[str, str]] = {}
        tensors = dict(store.tensors)
        for gate, info in store.tensors.items():
            name, up = _whole_and_up(gate)
            if up != gate and tensors.get(up) == info and info.shape:
                self._halves[name] = (gate, up)
                del tensors[gate], tensors[up]
                tensors[name] = TensorInfo((2 * info.shape[0], *info.shape[1:]), info.dtype)
        self.tensors: Mapping[str, TensorInfo] = tensors

    @property
    def is_fused(self) -> bool:
        """True when there is anything to join."""
        return bool(self._halves)

    def halves(self, name: str) -> tuple[str, ...]:
        """Return the names of gate and up that are the tensor, else its own."""
        return self._halves.get(name, (name,))

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it; a slice inside one half comes without a copy."""
        if name not in self._halves:
            return self._store.read(name, index)
        shape = self.tensors[name].shape
        half = shape[0] // 2
        start, stop = bounds_of(shape, index)[0]
        parts = [
            self._store.read(key, (slice(max(start - first, 0), stop - first), *index[1:]))
            for key, first in zip(self._halves[name], (0, half), strict=True)
            if start < first + half and stop > first
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _whole_and_up(gate: str) -> tuple[str, str]:
    """Return the name of the joined tensor and of its second half, for the name of its first."""
    for first, second, whole in _HALVES:
        if first in gate:
            return gate.replace(first, whole), gate.replace(first, second)
    return gate, gate


class MappedStore:
    """Canonical tensors made of the tensors of a Hugging Face model, one at a time."""

    def __init__(
        self,
        store: TensorStore,
        plans: Iterable[TensorPlan],
        arch: Architecture,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._store = store
        self._plans = {plan.name: plan for plan in plans}
        self._arch = arch
        self.tensors: Mapping[str, TensorInfo] = {}
        dtype = "float32"
        for name, plan in self._plans.items():
            dtype = self._dtype(plan) or dtype  # what is made of nothing is as what precedes it
            self.tensors[name] = TensorInfo(shapes[name], dtype)

    def _dtype(self, plan: TensorPlan) -> str | None:
        kinds = {self._store.tensors[name].dtype for name in plan.hf_names}
        if len(kinds) > 1:
            raise ContentError(
                f"{', '.join(plan.hf_names)} become one tensor but have the element types "
                f"{', '.join(sorted(kinds))}. Save the model in one dtype first."
            )
        return kinds.pop() if kinds else None

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it; only copies and halves of pairs come without a copy."""
        plan = self._plans[name]
        if not plan.hf_names:
            return self._zeros(name)[index]
        parts = [self._store.read(hf_name) for hf_name in plan.hf_names]
        return plan.op.to_megatron(parts, self._arch)[index]

    def hf_names(self, name: str) -> tuple[str, ...]:
        """Return the names of the Hugging Face tensors that a tensor is made of."""
        return self._plans[name].hf_names

    def read_runs(self, name: str) -> tuple[Array, ...]:
        """Return the arrays that, stacked along dim 0, are the tensor, copying as little as possible."""
        plan = self._plans[name]
        if not plan.hf_names:
            return (self._zeros(name),)
        return plan.op.runs([self._store.read(hf_name) for hf_name in plan.hf_names], self._arch)

    def _zeros(self, name: str) -> Array:
        info = self.tensors[name]
        return np.zeros(info.shape, element_type(info.dtype).numpy)


@dataclass(frozen=True)
class Made:
    """A tensor that is computed when it is asked for: what it will be, of what, and how."""

    info: TensorInfo
    sources: tuple[str, ...]
    make: Callable[[], Array]


class MadeStore:
    """Tensors that are made of others, one at a time, when they are read."""

    def __init__(self, made: Mapping[str, Made]) -> None:
        self._made = made
        self.tensors: Mapping[str, TensorInfo] = {n: tensor.info for n, tensor in made.items()}

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it."""
        return self._made[name].make()[index]

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the names of the tensors that a tensor is made of."""
        return self._made[name].sources


def _joined_info(name: str, split: Split, places: Sequence[Place]) -> TensorInfo:
    infos = {place.info for place in places}
    if len(infos) > 1:
        shapes = ", ".join(f"{info.dtype} {list(info.shape)}" for info in sorted(infos, key=str))
        raise ShapeError(f'The ranks hold shards of different kinds for "{name}": {shapes}.')
    info = places[0].info
    if split.dim is not None and split.dim >= len(info.shape):
        raise ShapeError(f'"{name}" has shape {list(info.shape)}, which ranks cannot share out.')
    return TensorInfo(split.whole_shape(info.shape, len(places)), info.dtype)


def _equal_copies(name: str, places: Sequence[Place]) -> Array:
    """Return what every rank holds alike."""
    first = places[0].read()
    for rank, place in enumerate(places):
        if not np.array_equal(_bits(first), _bits(place.read())):
            where = getattr(place.store, "where", "")
            raise ContentError(
                f'"{name}" is the same on every tensor-parallel rank, but rank {rank} holds '
                f"other values than rank 0{f' ({where})' if where else ''}. The checkpoint is "
                "corrupt: fetch it again."
            )
    return first


def _bits(array: Array) -> Array:
    """Return floats as bits, so that equal NaNs compare equal."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "f" else array
