"""Read anywhere inside a gzip stream, without unpacking it to disk.

A gzip stream can only be unpacked from its start. So it is unpacked once, keeping nothing but the
state of the unpacker every few megabytes; a later read goes on from the nearest of these.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from nemoalign.archive.pages import Pages
from nemoalign.archive.regions import Region
from nemoalign.archive.store import DAMAGED
from nemoalign.errors import SourceError
from nemoalign.log import PlainReporter, speaking_rank

MAGIC = b"\x1f\x8b"
CHUNK = 64 << 10
"""Packed bytes unpacked at a time: at most 64 MB, since deflate shrinks by at most 1032."""

PAGE, KEPT_PAGES = 1 << 20, 8
FIRST_STEP = 1 << 20
MAX_POINTS = 1024
"""States kept, each of some 45 KB; the step between them doubles when there are more."""

MAX_RATIO, FREE_BYTES = 200, 64 << 20
"""Weights shrink by a tenth; what grows 200 times beyond the first 64 MB was made to fill memory."""

LONG_BYTES = 128 << 20
_GZIP = 31  # zlib's number for "a gzip stream, its sum and length checked"


@dataclass(frozen=True)
class _Point:
    """The unpacker's state before the packed byte ``packed``, when ``plain`` bytes have come out."""

    plain: int
    packed: int
    state: Any


class GzipReader:
    """The bytes inside a gzip stream. Making one unpacks all of it and checks sum and length."""

    def __init__(self, packed: Region) -> None:
        self._packed = packed
        if packed.size > LONG_BYTES:
            PlainReporter(quiet=not speaking_rank()).say(
                f"{packed.path} is compressed, as NeMo before 1.7 wrote it: unpacking its "
                f"{packed.size / 1e9:.1f} GB once, to find what is where, takes a while."
            )
        self._points: list[_Point] = []
        self.size = self._scan()
        self._pages = Pages(self._unpack, self.size, page=PAGE, keep=KEPT_PAGES)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of a range of what was packed."""
        return self._pages.read(offset, size)

    def _scan(self) -> int:
        """Unpack everything, keep states on the way, and return the unpacked size."""
        state, plain, step = zlib.decompressobj(_GZIP), 0, FIRST_STEP
        for at in range(0, self._packed.size, CHUNK):
            if not self._points or plain - self._points[-1].plain >= step:
                self._points.append(_Point(plain, at, state.copy()))
            if len(self._points) > MAX_POINTS:
                del self._points[1::2]
                step *= 2
            plain += len(self._step(state, at))
            if plain > FREE_BYTES + MAX_RATIO * (at + CHUNK):
                raise SourceError(
                    f"{self._packed.path} unpacks to more than {MAX_RATIO} times its size, which no "
                    f"weights do. {DAMAGED}"
                )
        if not state.eof or state.unused_data:
            what = "goes on after the end of" if state.eof else "ends inside"
            raise SourceError(f"{self._packed.path} {what} its gzip stream. {DAMAGED}")
        return plain

    def _step(self, state: Any, at: int) -> bytes:
        try:
            return state.decompress(self._packed.bytes(at, min(CHUNK, self._packed.size - at)))
        except zlib.error as error:
            raise SourceError(
                f"{self._packed.path} is damaged near byte {at} of its gzip stream ({error}). "
                "Fetch or copy it again."
            ) from error

    def _unpack(self, offset: int, size: int) -> bytes:
        point = self._points[bisect_right(self._points, offset, key=lambda p: p.plain) - 1]
        state, plain = point.state.copy(), point.plain
        parts: list[bytes] = []
        for at in range(point.packed, self._packed.size, CHUNK):
            data = self._step(state, at)
            if plain + len(data) > offset:
                parts.append(data[max(0, offset - plain) : offset + size - plain])
            plain += len(data)
            if plain >= offset + size:
                return b"".join(parts)
        raise SourceError(
            f"{self._packed.path} became shorter while it was read. Do not write to it meanwhile."
        )
