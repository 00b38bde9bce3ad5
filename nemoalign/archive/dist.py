"""Read a torch_dist directory (``model_weights/`` of a ``.nemo``) without torch or megatron.

Every chunk is a torch.save zip of its own inside a ``.distcp`` file, found through ``.metadata``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np

from nemoalign.archive.dist_index import StoredTensor, read_index
from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.files import Container
from nemoalign.archive.stand_ins import TensorRef
from nemoalign.archive.store import DAMAGED, Bounds, Index, TensorInfo, bounds_of
from nemoalign.archive.torch_file import TorchFile
from nemoalign.errors import SourceError

FORMAT_NAME = "metadata.json"
COMMON_NAME = "common.pt"
MAX_FORMAT_BYTES = 1 << 20


class DistStore:
    """The tensors of a distributed checkpoint under the keys and shapes it stores (often stacked).

    Opening reads ``metadata.json`` and ``.metadata``. Raises SourceError when the save was not
    completed, or is of another backend than torch_dist.
    """

    def __init__(self, container: Container) -> None:
        self.path = container.path
        self._container = container
        self.backend = read_backend(container)
        if self.backend != "torch_dist":
            raise SourceError(
                f"{container.path} is a distributed checkpoint of backend {self.backend[:60]!r}, "
                "and only torch_dist is read here. Use a checkpoint saved by NeMo 2.0 or later."
            )
        self._index = read_index(container)
        self.tensors: Mapping[str, TensorInfo] = {
            name: stored.info for name, stored in self._index.tensors.items()
        }

    @property
    def bytes_keys(self) -> list[str]:
        """Entries that are no tensors: pickled ``_extra_state`` of Transformer Engine."""
        return list(self._index.bytes_entries)

    @cached_property
    def common(self) -> Any:
        """What ``common.pt`` holds (``{}`` in a ``.nemo``), with stand-ins; see TorchFile."""
        return TorchFile(self._container.member(COMMON_NAME), f"{self.path}: {COMMON_NAME}").tree

    def read_bytes(self, name: str, limit: int) -> bytes:
        """Return one entry of ``bytes_keys``; raises SourceError above ``limit`` bytes."""
        return self._index.bytes_entries[name].read(limit)

    def chunks(self, name: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return offsets and shape of every stored chunk of a tensor."""
        stored = self._index.tensors[name]
        return [
            (tuple(map(int, start)), tuple(map(int, end - start)))
            for start, end in zip(stored.starts, stored.ends, strict=True)
        ]

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it: a view of the file when one chunk holds all of it."""
        stored = self._index.tensors[name]
        bounds = bounds_of(stored.info.shape, index)
        numbers = stored.touching(bounds)
        if len(numbers) == 1:
            number = numbers[0]
            inside = _overlap(stored, number, bounds)
            if inside == bounds:
                return self._read_chunk(name, stored, number, bounds)
        return self._assemble(name, stored, numbers, bounds)

    def _assemble(
        self, name: str, stored: StoredTensor, numbers: list[int], bounds: Bounds
    ) -> Array:
        shape = tuple(stop - start for start, stop in bounds)
        self._check_cover(name, stored, numbers, bounds)
        result = np.empty(shape, dtype(stored.info.dtype).numpy)
        for number in numbers:
            inside = _overlap(stored, number, bounds)
            target = _relative(inside, [start for start, _ in bounds])
            result[target] = self._read_chunk(name, stored, number, inside)
        result.flags.writeable = False
        return result

    def _read_chunk(self, name: str, stored: StoredTensor, number: int, inside: Bounds) -> Array:
        """Return the part ``inside`` (global coordinates) of one chunk."""
        where = f"{self.path}: chunk {number} of {name}"
        file = TorchFile(stored.records[number], where)
        shape = tuple(map(int, stored.ends[number] - stored.starts[number]))
        ref = file.tree
        if not isinstance(ref, TensorRef) or ref.info != TensorInfo(shape, stored.info.dtype):
            found = f"{ref.info.dtype} {list(ref.info.shape)}" if isinstance(ref, TensorRef) else ""
            raise SourceError(
                f"{where} is {found or 'no tensor'}, but the index says {stored.info.dtype} "
                f"{list(shape)}. {DAMAGED}"
            )
        return file.read_ref(ref, _relative(inside, list(map(int, stored.starts[number]))))

    def _check_cover(
        self, name: str, stored: StoredTensor, numbers: list[int], bounds: Bounds
    ) -> None:
        """With disjoint chunks, as many elements as the slice has mean that every one is there."""
        starts, ends = stored.starts[numbers], stored.ends[numbers]
        for at in range(1, len(numbers)):
            overlaps = (starts[:at] < ends[at]) & (ends[:at] > starts[at])
            if overlaps.all(axis=1).any():
                raise SourceError(f"{self.path}: chunks of {name} overlap. {DAMAGED}")
        volume = sum(_volume(_overlap(stored, number, bounds)) for number in numbers)
        if volume != _volume(bounds):
            raise SourceError(f"{self.path}: {name} has elements that no chunk holds. {DAMAGED}")


def read_backend(container: Container) -> str:
    """Return the format of a distributed checkpoint, ``torch_dist`` or ``zarr``.

    Raises SourceError without ``metadata.json``, which is written last: the save did not end.
    """
    if FORMAT_NAME not in container.members:
        raise SourceError(
            f"{container.path} has no {FORMAT_NAME}, which is written last, so this distributed "
            "checkpoint was never completed. Use another checkpoint of that run."
        )
    text = container.members[FORMAT_NAME].read(MAX_FORMAT_BYTES)
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{container.path}: {FORMAT_NAME}: {error}. {DAMAGED}") from error
    backend = (
        cast("dict[str, object]", content).get("sharded_backend") if _is_dict(content) else None
    )
    if not isinstance(backend, str):
        raise SourceError(f"{container.path}: {FORMAT_NAME} names no sharded_backend. {DAMAGED}")
    return backend


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _overlap(stored: StoredTensor, number: int, bounds: Bounds) -> Bounds:
    return tuple(
        (max(start, int(first)), min(stop, int(last)))
        for (start, stop), first, last in zip(
            bounds, stored.starts[number], stored.ends[number], strict=True
        )
    )


def _relative(bounds: Bounds, origin: list[int]) -> Index:
    return tuple(
        slice(start - zero, stop - zero) for (start, stop), zero in zip(bounds, origin, strict=True)
    )


def _volume(bounds: Bounds) -> int:
    volume = 1
    for start, stop in bounds:
        volume *= stop - start
    return volume
