"""Read a zarr (version 2) directory as megatron-core wrote it up to 0.15, without zarr.

Every tensor is a folder: ``.zarray`` describes it, and each chunk is a file named by its place.
The writer keeps every chunk, also one of zeros, so a missing chunk is a damaged checkpoint and is
never filled in, whatever ``fill_value`` says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from nemoalign.archive.codecs import MAX_CHUNK_BYTES, decoder
from nemoalign.archive.dist import COMMON_NAME
from nemoalign.archive.dtypes import DTYPES, Array, dtype
from nemoalign.archive.files import Container
from nemoalign.archive.json_read import json_object
from nemoalign.archive.regions import Region, map_strided, row_major_strides
from nemoalign.archive.store import DAMAGED, Bounds, Index, TensorInfo, bounds_of, checked_shape
from nemoalign.archive.torch_file import TorchFile
from nemoalign.errors import ContentError, SourceError

ARRAY_NAME = ".zarray"
MAX_ARRAY_BYTES = 1 << 20
OBJECT_SUFFIX = ".pt"

_CHUNK = re.compile(r"\d+(?:[./]\d+)*")
_ATTRIBUTES = (ARRAY_NAME, ".zattrs")
_RAW = ("bfloat16", "float8_e4m3fn", "float8_e5m2")

_TYPES = {
    **{row.numpy.str: name for name, row in DTYPES.items() if name not in _RAW},
    **{name: name for name in _RAW},
    # What is left of bfloat16 where numpy did not know it when the file was written.
    **dict.fromkeys(("<V2", "|V2", "<u2"), "bfloat16"),
}

_Place = tuple[int, ...]


@dataclass(frozen=True)
class _Stored:
    """One tensor: chunks are all of one shape, also where they stick out of the tensor."""

    info: TensorInfo
    chunk: TensorInfo
    strides: tuple[int, ...]
    decode: Callable[[Region, int], Array] | None
    chunks: Mapping[_Place, Region]


class ZarrStore:
    """The tensors of a zarr checkpoint under the keys and shapes it stores (often stacked).

    Opening reads every ``.zarray`` and compares it with the chunks that are there.
    """

    backend = "zarr"

    def __init__(self, container: Container) -> None:
        self.path = container.path
        self._container = container
        self._stored = {
            key: _read_array(files, f"{container.path}: {key[:200]}")
            for key, files in _folders(container).items()
            if _is_array(key, files, container)
        }
        self.tensors: Mapping[str, TensorInfo] = {n: s.info for n, s in self._stored.items()}
        self._objects = {
            name.removesuffix(OBJECT_SUFFIX): region
            for name, region in container.members.items()
            if "/" in name and name.endswith(OBJECT_SUFFIX)
        }

    @property
    def bytes_keys(self) -> list[str]:
        """Entries that are no tensors: pickled ``_extra_state`` of Transformer Engine."""
        return list(self._objects)

    @cached_property
    def common(self) -> Any:
        """What ``common.pt`` holds (``{}`` in a ``.nemo``), with stand-ins; see TorchFile."""
        return TorchFile(self._container.member(COMMON_NAME), f"{self.path}: {COMMON_NAME}").tree

    def read_bytes(self, name: str, limit: int) -> bytes:
        """Return one entry of ``bytes_keys``; raises SourceError above ``limit`` bytes."""
        return self._objects[name].read(limit)

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it: a view of the file when one plain chunk holds all of it."""
        stored = self._stored[name]
        bounds = bounds_of(stored.info.shape, index)
        places = list(_touched(bounds, stored.chunk.shape))
        if len(places) == 1:
            return _read_chunk(stored, places[0], bounds)
        result = np.empty([stop - start for start, stop in bounds], dtype(stored.info.dtype).numpy)
        for place in places:
            inside = _overlap(bounds, place, stored.chunk.shape)
            target = _relative(inside, [start for start, _ in bounds])
            result[target] = _read_chunk(stored, place, inside)
        result.flags.writeable = False
        return result


def _folders(container: Container) -> dict[str, dict[str, Region]]:
    """Return the files of every folder, by the folder's name; chunks may lie in sub-folders."""
    folders: dict[str, dict[str, Region]] = {}
    for name, region in container.members.items():
        key, _, rest = name.partition("/")
        if rest:
            folders.setdefault(key, {})[rest] = region
    return folders


def _is_array(key: str, files: Mapping[str, Region], container: Container) -> bool:
    if ARRAY_NAME in files:
        return True
    if any(_CHUNK.fullmatch(name) and region.size for name, region in files.items()):
        raise SourceError(
            f"{container.path} has data of {key[:200]!r} but no {ARRAY_NAME} that describes it. Files "
            "that begin with a dot may have been left out of a copy: fetch it again."
        )
    return False


def _read_array(files: Mapping[str, Region], where: str) -> _Stored:
    stated = json_object(files[ARRAY_NAME].read(MAX_ARRAY_BYTES), f"{where}/{ARRAY_NAME}")
    shape = checked_shape(_list(stated, "shape", where), where)
    lengths = checked_shape(_list(stated, "chunks", where), where)
    order, separator = stated.get("order"), stated.get("dimension_separator", ".")
    if (
        len(lengths) != len(shape)
        or 0 in lengths
        or order not in ("C", "F")
        or separator not in (".", "/")
        or stated.get("zarr_format") != 2
    ):
        raise SourceError(f"{where}/{ARRAY_NAME} describes no zarr array of version 2. {DAMAGED}")
    if stated.get("filters"):
        raise ContentError(
            f"{where} is stored through zarr filters, which no checkpoint writer uses."
        )
    kind = _kind(stated.get("dtype"), where)
    chunk = TensorInfo(lengths, kind)
    decode = decoder(stated.get("compressor"), where)
    stored = _Stored(
        TensorInfo(shape, kind),
        chunk,
        row_major_strides(lengths) if order == "C" else row_major_strides(lengths[::-1])[::-1],
        decode,
        _chunks(files, len(shape), separator, where),
    )
    _check_chunks(stored, where)
    return stored


def _list(stated: Mapping[str, Any], name: str, where: str) -> list[object]:
    value = stated.get(name)
    if not isinstance(value, list):
        raise SourceError(f"{where}/{ARRAY_NAME} states no {name}. {DAMAGED}")
    return value  # pyright: ignore[reportUnknownVariableType] - checked one by one by the caller


def _kind(stated: object, where: str) -> str:
    if not isinstance(stated, str) or stated not in _TYPES:
        raise ContentError(
            f"{where} has the zarr element type {str(stated)[:60]!r}, which no checkpoint of a "
            f"language model uses. Known are: {', '.join(_TYPES)}."
        )
    return _TYPES[stated]


def _chunks(
    files: Mapping[str, Region], rank: int, separator: str, where: str
) -> dict[_Place, Region]:
    chunks: dict[_Place, Region] = {}
    for name, region in files.items():
        if name in _ATTRIBUTES:
            continue
        words = name.split(separator)
        if not all(word.isascii() and word.isdigit() and len(word) < 16 for word in words):
            raise SourceError(f"{where} holds {name[:200]!r}, which is no chunk of it. {DAMAGED}")
        place = tuple(map(int, words)) if rank else ()
        if place in chunks or len(words) != max(rank, 1):
            raise SourceError(f"{where} holds {name[:200]!r}, which is no chunk of it. {DAMAGED}")
        chunks[place] = region
    return chunks


def _check_chunks(stored: _Stored, where: str) -> None:
    grid = [-(-n // step) for n, step in zip(stored.info.shape, stored.chunk.shape, strict=True)]
    outside = [p for p in stored.chunks if any(n >= end for n, end in zip(p, grid, strict=True))]
    if outside:
        raise SourceError(f"{where} holds a chunk at {outside[0]}, outside of its shape. {DAMAGED}")
    wanted = math.prod(grid)
    if len(stored.chunks) < wanted:
        first = (np.unravel_index(number, grid) for number in range(len(stored.chunks) + 1))
        missing = next(p for p in (tuple(map(int, at)) for at in first) if p not in stored.chunks)
        raise SourceError(
            f"{where} lacks the chunk at {missing} ({wanted - len(stored.chunks)} of {wanted} are "
            "missing). The save was not completed or files were lost: fetch it again."
        )
    size = stored.chunk.size_bytes
    if stored.decode is not None and size > MAX_CHUNK_BYTES:
        raise SourceError(f"{where} states compressed chunks of {size} bytes. {DAMAGED}")
    wrong = [
        p for p, region in stored.chunks.items() if stored.decode is None and region.size != size
    ]
    if wrong:
        raise SourceError(
            f"{where}: the chunk at {wrong[0]} has {stored.chunks[wrong[0]].size} bytes where "
            f"{size} are needed. It is truncated: fetch the checkpoint again."
        )


def _touched(bounds: Bounds, lengths: tuple[int, ...]) -> Iterator[_Place]:
    if any(start == stop for start, stop in bounds):
        return iter(())
    spans = zip(bounds, lengths, strict=True)
    return product(*(range(start // step, -(-stop // step)) for (start, stop), step in spans))


def _overlap(bounds: Bounds, place: _Place, lengths: tuple[int, ...]) -> Bounds:
    return tuple(
        (max(start, number * step), min(stop, (number + 1) * step))
        for (start, stop), number, step in zip(bounds, place, lengths, strict=True)
    )


def _relative(bounds: Bounds, origin: list[int]) -> Index:
    return tuple(
        slice(start - zero, stop - zero) for (start, stop), zero in zip(bounds, origin, strict=True)
    )


def _read_chunk(stored: _Stored, place: _Place, inside: Bounds) -> Array:
    """Return the part ``inside`` (global coordinates) of one chunk."""
    origin = [number * step for number, step in zip(place, stored.chunk.shape, strict=True)]
    index = _relative(inside, origin)
    region = stored.chunks[place]
    if stored.decode is None:
        return map_strided(region, 0, stored.chunk, stored.strides, index)
    kind = dtype(stored.chunk.dtype)
    raw = stored.decode(region, stored.chunk.size_bytes)
    steps = [step * kind.itemsize for step in stored.strides]
    return np.ndarray(stored.chunk.shape, kind.numpy, raw, strides=steps)[index]
