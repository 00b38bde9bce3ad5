"""Hugging Face weights: ``model.safetensors``, or shards with ``model.safetensors.index.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemoalign.archive.dtypes import Array, by_safetensors
from nemoalign.archive.files import Container
from nemoalign.archive.json_read import json_object
from nemoalign.archive.regions import Region, map_tensor
from nemoalign.archive.safetensors_write import INDEX_NAME, SINGLE_NAME, SafetensorsWriter
from nemoalign.archive.shards import read_shards
from nemoalign.archive.store import DAMAGED, Index, TensorInfo, checked_shape
from nemoalign.errors import SourceError

__all__ = ["SafetensorsStore", "SafetensorsWriter", "read_header"]

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's own reader."""


class SafetensorsStore:
    """The tensors of a Hugging Face directory; only headers are read when it is opened."""

    layout = "safetensors"

    def __init__(self, container: Container) -> None:
        self.path = container.path
        self._places: dict[str, tuple[Region, int, TensorInfo]] = {}
        if INDEX_NAME in container.members:
            self._places = read_shards(container, INDEX_NAME, read_header)
        else:
            self._places = read_header(container.member(SINGLE_NAME), SINGLE_NAME)
        self.tensors: Mapping[str, TensorInfo] = {n: p[2] for n, p in self._places.items()}

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it as a read-only view of the file."""
        region, start, info = self._places[name]
        return map_tensor(region, start, info, index)


def read_header(region: Region, where: str) -> dict[str, tuple[Region, int, TensorInfo]]:
    """Return file, data offset and info of every tensor of one safetensors file, all checked."""
    size = int.from_bytes(region.bytes(0, min(8, region.size)), "little")
    if region.size < 8 or size > min(MAX_HEADER_BYTES, region.size - 8):
        raise SourceError(
            f"{region.path}: {where} states a header of {size} bytes in a file of {region.size}. "
            "It is truncated or no safetensors file: fetch it again."
        )
    header = json_object(region.bytes(8, size), f"{region.path}: the header of {where}")
    header.pop("__metadata__", None)
    data = region.part(8 + size, region.size - 8 - size)
    found: dict[str, tuple[Region, int, TensorInfo]] = {}
    ranges: list[tuple[int, int]] = []
    for name, entry in header.items():
        info, start = _checked_entry(entry, f"{region.path}: {where}, tensor {name[:200]!r}")
        found[name] = (data, start, info)
        ranges.append((start, start + info.size_bytes))
    _check_ranges(ranges, data.size, f"{region.path}: {where}")
    return found


def _checked_entry(entry: Any, where: str) -> tuple[TensorInfo, int]:
    match entry:
        case {"dtype": str(kind), "shape": [*_], "data_offsets": [int(start), int(end)]}:
            shape = checked_shape(entry["shape"], where)
            info = TensorInfo(shape, by_safetensors(kind).name)
        case _:
            raise SourceError(f"{where} has no dtype, shape and data_offsets. {DAMAGED}")
    if end - start != info.size_bytes:
        raise SourceError(
            f"{where} of shape {list(shape)} and type {info.dtype} needs {info.size_bytes} bytes, "
            f"but its offsets span {end - start}. {DAMAGED}"
        )
    return info, start


def _check_ranges(ranges: list[tuple[int, int]], size: int, where: str) -> None:
    """The format allows neither gaps nor overlaps, so bytes cannot hide or be read twice."""
    expected = 0
    for start, end in sorted(ranges):
        if start != expected:
            raise SourceError(f"{where} has a gap or overlap at data byte {start}. {DAMAGED}")
        expected = end
    if expected != size:
        raise SourceError(
            f"{where} has {size} bytes of data where its header describes {expected}. The file is "
            "truncated: fetch it again."
        )
