"""Write the zip that torch.save writes: stored entries, data at multiples of 64, streamed.

An entry's checksum follows its data (a "data descriptor"), so nothing is written twice and the
output need not be seekable.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

ALIGNMENT = 64
BLOCK_BYTES = 4 << 20
"""Bytes that are given to ``write`` at once."""

PARALLEL_BYTES = 1 << 20
"""From here on the checksum is worth a thread of its own."""

LARGE = 0xFFFFFFFF
"""From here on a size or offset is stated in zip64 fields."""

_SATURATED = 0xFFFFFFFF  # what the short field says then

Write = Callable[[bytes | memoryview], object]

_FLAGS = 0x0808  # a data descriptor follows; names are UTF-8
_DATE = 0  # torch writes neither date nor time


@dataclass(frozen=True)
class _Entry:
    name: bytes
    offset: int
    size: int
    crc: int


class ZipStream:
    """Entries below one top folder, given to ``write`` in order; ``close`` ends the zip."""

    def __init__(self, write: Write, top: str = "archive") -> None:
        self._write = write
        self._top = top
        self._entries: list[_Entry] = []
        self._position = 0

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._position

    @property
    def checksum(self) -> int:
        """One number that depends on every byte of every entry so far."""
        return zlib.crc32(b"".join(e.name + struct.pack("<L", e.crc) for e in self._entries))

    def add(self, name: str, data: bytes | memoryview) -> int:
        """Write one entry and return its CRC-32."""
        begun = self._begin(name, len(data))
        crc = write_blocks(self._put, memoryview(data))
        self._finish(begun, crc)
        return crc

    def skip(self, name: str, size: int) -> None:
        """Count one entry without its data, to learn how large a zip becomes."""
        begun = self._begin(name, size)
        self._position += size
        self._finish(begun, 0)

    def _begin(self, name: str, size: int) -> _Entry:
        entry = _Entry(f"{self._top}/{name}".encode(), self._position, size, 0)
        self._put(_local_header(entry))
        return entry

    def _finish(self, entry: _Entry, crc: int) -> None:
        widths = "<4sLQQ" if entry.size >= LARGE else "<4sLLL"
        self._put(struct.pack(widths, b"PK\x07\x08", crc, entry.size, entry.size))
        self._entries.append(replace(entry, crc=crc))

    def close(self) -> int:
        """Write the central directory and return the size of the whole zip."""
        start = self._position
        self._put(b"".join(_directory_entry(entry) for entry in self._entries))
        size, count = self._position - start, len(self._entries)
        end64 = struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start
        )
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, self._position, 1)
        few, small, near = min(count, 0xFFFF), min(size, _SATURATED), min(start, _SATURATED)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, small, near, 0)
        self._put(end64 + locator + end)
        return self._position

    def _put(self, data: bytes | memoryview) -> None:
        self._write(data)
        self._position += len(data)


def write_blocks(write: Write, data: memoryview) -> int:
    """Write all of ``data`` and return its CRC-32, computed on another core when that pays."""
    if len(data) < PARALLEL_BYTES:
        write(data)
        return zlib.crc32(data)
    with ThreadPoolExecutor(1) as worker:
        crc = worker.submit(zlib.crc32, data)
        for start in range(0, len(data), BLOCK_BYTES):
            write(data[start : start + BLOCK_BYTES])
        return crc.result()


def _local_header(entry: _Entry) -> bytes:
    large = entry.size >= LARGE
    wide = struct.pack("<2H2Q", 1, 16, entry.size, entry.size) if large else b""
    size = _SATURATED if large else 0
    unpadded = entry.offset + 30 + len(entry.name) + len(wide) + 4
    padding = -unpadded % ALIGNMENT
    # torch fills the gap with an extra field of kind "FB" and the letter Z.
    extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    fixed = struct.pack(
        "<4s5H3L2H",
        *(b"PK\x03\x04", 45 if large else 0, _FLAGS, 0, _DATE, _DATE),
        *(0, size, size, len(entry.name), len(extra)),
    )
    return fixed + entry.name + extra


def _directory_entry(entry: _Entry) -> bytes:
    wide = b""
    size, offset = entry.size, entry.offset
    if size >= LARGE:
        wide += struct.pack("<2Q", size, size)
        size = _SATURATED
    if offset >= LARGE:
        wide += struct.pack("<Q", offset)
        offset = _SATURATED
    extra = struct.pack("<2H", 1, len(wide)) + wide if wide else b""
    needed = 45 if wide else 0
    fixed = struct.pack(
        "<4s6H3L5H2L",
        *(b"PK\x01\x02", 0, needed, _FLAGS, 0, _DATE, _DATE),
        *(entry.crc, size, size, len(entry.name), len(extra), 0, 0, 0, 0, offset),
    )
    return fixed + entry.name + extra
