"""The index of a distributed checkpoint: which chunk of which tensor is where, all checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from nemoalign.archive.dtypes import DType
from nemoalign.archive.files import Container
from nemoalign.archive.pickles import MAX_BYTES, load_pickle
from nemoalign.archive.regions import Region
from nemoalign.archive.stand_ins import Record
from nemoalign.archive.store import DAMAGED, Bounds, TensorInfo, checked_shape
from nemoalign.errors import SourceError

INDEX_NAME = ".metadata"

_Place = tuple[str, tuple[int, ...] | None]
"""Name of a tensor and offset of the chunk; None for an entry that is bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of ``info`` in chunks: chunk ``i`` begins at ``starts[i]`` and ends at ``ends[i]``."""

    info: TensorInfo
    starts: np.ndarray[Any, np.dtype[np.int64]]
    ends: np.ndarray[Any, np.dtype[np.int64]]
    records: list[Region]

    def touching(self, bounds: Bounds) -> list[int]:
        """Return the chunks that hold any element inside ``bounds``."""
        first = np.array([start for start, _ in bounds], np.int64)
        last = np.array([stop for _, stop in bounds], np.int64)
        touches = ((self.starts < last) & (self.ends > first) & (last > first)).all(axis=1)
        return [int(number) for number in np.flatnonzero(touches)]


@dataclass(frozen=True)
class DistIndex:
    """Everything that ``.metadata`` says: tensors, and entries that are bytes."""

    tensors: Mapping[str, StoredTensor]
    bytes_entries: Mapping[str, Region]


def read_index(container: Container) -> DistIndex:
    """Return the index of a checkpoint directory; raises SourceError where it contradicts files."""
    where = f"{container.path}: {INDEX_NAME}"
    metadata = load_pickle(container.member(INDEX_NAME).read(MAX_BYTES), where)
    entries = _mapping(metadata, "state_dict_metadata", where)
    records = _locations(_mapping(metadata, "storage_data", where), container, where)
    tensors: dict[str, StoredTensor] = {}
    bytes_entries: dict[str, Region] = {}
    for name, entry in entries.items():
        match entry:
            case Record(kind="TensorStorageMetadata", fields=fields):
                tensors[name] = _tensor(name, fields, records, where)
            case Record(kind="BytesStorageMetadata"):
                bytes_entries[name] = _record(records, (name, None), where)
            case _:
                raise SourceError(f"{where} describes {name[:200]!r} in an unknown way. {DAMAGED}")
    return DistIndex(tensors, bytes_entries)


def _mapping(metadata: object, field: str, where: str) -> dict[Any, Any]:
    found = metadata.fields.get(field) if isinstance(metadata, Record) else None
    if not isinstance(found, dict):
        raise SourceError(f"{where} has no {field}, so it is no checkpoint index. {DAMAGED}")
    return cast("dict[Any, Any]", found)


def _locations(
    storage_data: dict[Any, Any], container: Container, where: str
) -> dict[_Place, Region]:
    records: dict[_Place, Region] = {}
    for index, info in storage_data.items():
        place = _place(index, where)
        if place in records:
            raise SourceError(f"{where} states two places for {place[0][:200]!r}. {DAMAGED}")
        records[place] = _location(info, container, where)
    _check_disjoint(list(records.values()), where)
    return records


def _place(index: object, where: str) -> _Place:
    match index:
        case Record(kind="MetadataIndex", fields={"fqn": str(name), **rest}):
            offset = rest.get("offset")
            return name, None if offset is None else checked_shape(offset, where)
        case _:
            raise SourceError(f"{where} holds a place that is no MetadataIndex. {DAMAGED}")


def _location(info: object, container: Container, where: str) -> Region:
    match info:
        case Record(
            kind="_StorageInfo",
            fields={
                "relative_path": str(file),
                "offset": int(offset),
                "length": int(length),
                **rest,
            },
        ):
            if rest.get("transform_descriptors"):
                raise SourceError(
                    f"{where} says that the data of {file[:100]!r} is transformed (compressed), "
                    "which is not supported. Save the checkpoint without it."
                )
            if "/" in file or file not in container.members:
                raise SourceError(
                    f"{where} points at {file[:200]!r}, which is not in the checkpoint. It is "
                    "incomplete or damaged: fetch it again."
                )
            return container.members[file].part(offset, length)
        case _:
            raise SourceError(f"{where} holds a location that is no _StorageInfo. {DAMAGED}")


def _check_disjoint(records: list[Region], where: str) -> None:
    """Chunks that share bytes could claim far more data than the files have."""
    last: Region | None = None
    for record in sorted(records, key=lambda r: (str(r.path), r.offset)):
        if last and last.path == record.path and record.offset < last.offset + last.size:
            raise SourceError(f"{where} places two chunks on the same bytes. {DAMAGED}")
        last = record


def _record(records: dict[_Place, Region], place: _Place, where: str) -> Region:
    if place not in records:
        raise SourceError(
            f"{where} does not say where {place[0][:200]!r} is (chunk at {place[1]}). The save was "
            "not completed: use another checkpoint of that run."
        )
    return records[place]


def _tensor(
    name: str, fields: dict[str, Any], records: dict[_Place, Region], where: str
) -> StoredTensor:
    what = f"{where}, tensor {name[:200]!r},"
    info = TensorInfo(checked_shape(fields.get("size", (-1,)), what), _dtype_of(fields, what))
    chunks = [_chunk(chunk, len(info.shape), what) for chunk in fields.get("chunks", ())]
    regions = [_record(records, (name, offsets), where) for offsets, _ in chunks]
    rank = len(info.shape)
    starts = np.array([offsets for offsets, _ in chunks], np.int64).reshape(len(chunks), rank)
    sizes = np.array([lengths for _, lengths in chunks], np.int64).reshape(len(chunks), rank)
    stored = StoredTensor(info, starts, starts + sizes, regions)
    _check_chunks(stored, [math.prod(lengths) for _, lengths in chunks], what)
    return stored


def _dtype_of(fields: dict[str, Any], what: str) -> str:
    match fields.get("properties"):
        case Record(state=(DType(name=name), *_)) | Record(fields={"dtype": DType(name=name)}):
            return name
        case _:
            raise SourceError(f"{what} has no known element type. {DAMAGED}")


def _chunk(chunk: object, rank: int, what: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    match chunk:
        case Record(fields={"offsets": offsets, "sizes": sizes}):
            offsets, sizes = checked_shape(offsets, what), checked_shape(sizes, what)
            if len(offsets) == len(sizes) == rank:
                return offsets, sizes
        case _:
            pass
    raise SourceError(f"{what} has a chunk that does not fit its shape. {DAMAGED}")


def _check_chunks(stored: StoredTensor, volumes: list[int], what: str) -> None:
    shape = np.array(stored.info.shape, np.int64)
    if (stored.ends > shape).any() or sum(volumes) != stored.info.size:
        raise SourceError(
            f"{what} of shape {list(stored.info.shape)} is not covered exactly by its "
            f"{len(volumes)} chunks of {sum(volumes)} elements. {DAMAGED}"
        )
    itemsize = stored.info.size_bytes // max(stored.info.size, 1)
    if any(v * itemsize > r.size for v, r in zip(volumes, stored.records, strict=True)):
        raise SourceError(f"{what} claims more bytes than its records have. {DAMAGED}")
