"""Decompress one chunk of a zarr array, into no more bytes than its description allows."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from nemoalign.archive.dtypes import Array
from nemoalign.archive.regions import Region
from nemoalign.archive.store import DAMAGED
from nemoalign.errors import ContentError, ResourceError, SourceError

MAX_CHUNK_BYTES = 1 << 31
"""What the largest buffer of blosc holds."""

_ZLIB = ("zlib", "gzip")
# Named one by one: numcodecs also has a codec that unpickles.
_NUMCODECS = ("blosc", "zstd", "lz4")
_ANY_HEADER = 47  # zlib's number for "a zlib or a gzip stream, whichever it is"

Decode = Callable[[Region, int], Array]
"""Takes a compressed region and the size it must have when decompressed."""


def decoder(compressor: object, where: str) -> Decode | None:
    """Return what decompresses the chunks of an array, or None when they are plain bytes.

    Raises:
        ContentError: for a compressor that no zarr writer uses for numbers.
        ResourceError: when the compressor needs numcodecs and that is not installed.
    """
    if compressor is None:
        return None
    match compressor:
        case {"id": str(name)} if name in _ZLIB:
            return _unzip
        case {"id": str(name)} if name in _NUMCODECS:
            return _with_numcodecs(name, where)
        case _:
            raise ContentError(
                f"{where} is compressed as {str(cast('Any', compressor))[:80]!r}, which is not "
                f"supported; {', '.join((*_ZLIB, *_NUMCODECS))} are."
            )


def _unzip(region: Region, size: int) -> Array:
    unpacker = zlib.decompressobj(_ANY_HEADER)
    try:
        data = unpacker.decompress(region.map().data, size + 1)
    except zlib.error as error:
        raise SourceError(
            f"{region.path} has a damaged compressed chunk ({error}). {DAMAGED}"
        ) from error
    if len(data) != size or not unpacker.eof:
        raise _wrong_size(region, size)
    return np.frombuffer(data, np.uint8)


def _with_numcodecs(name: str, where: str) -> Decode:
    try:
        numcodecs: Any = importlib.import_module("numcodecs")
    except ImportError as error:
        raise ResourceError(
            f"{where} is compressed with {name}, and the package that reads it is not installed. "
            'Type: pip install "nemoalign[zarr]"'
        ) from error
    codec = numcodecs.get_codec({"id": name})

    def decode(region: Region, size: int) -> Array:
        data = np.empty(size, np.uint8)
        try:
            found = codec.decode(region.map(), out=data)
        except (RuntimeError, ValueError, TypeError) as error:
            raise SourceError(
                f"{region.path} has a damaged compressed chunk ({error}). {DAMAGED}"
            ) from error
        if np.asarray(found).nbytes != size:
            raise _wrong_size(region, size)
        data.flags.writeable = False
        return data

    return decode


def _wrong_size(region: Region, size: int) -> SourceError:
    return SourceError(
        f"{region.path} has a compressed chunk that does not hold the {size} bytes its .zarray "
        f"states. {DAMAGED}"
    )
