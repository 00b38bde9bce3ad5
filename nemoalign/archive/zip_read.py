"""Find the entries of a torch.save zip: stored, never compressed, read from the central directory."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from nemoalign.archive.regions import Region
from nemoalign.archive.store import DAMAGED
from nemoalign.errors import SourceError

MAX_DIRECTORY_BYTES = 256 << 20
TAIL_BYTES = (1 << 16) + 22
"""Longest end record with its comment, which is where every zip is read from."""

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_SATURATED = 0xFFFFFFFF


@dataclass(frozen=True)
class ZipIndex:
    """Entries of one zip by their name below its top folder, with header offset and size."""

    region: Region
    where: str
    entries: dict[str, tuple[int, int]]
    checksums: dict[str, int]
    """The CRC-32 the zip states of each entry; 0 of all where torch was told to compute none."""

    def entry(self, name: str) -> Region:
        """Return the bytes of one entry; raises SourceError when it is missing or damaged."""
        if name not in self.entries:
            raise SourceError(f"{self.where} has no record {name[:100]!r}. {DAMAGED}")
        offset, size = self.entries[name]
        header = self.region.bytes(offset, _LOCAL.size)
        signature, *_, name_length, extra_length = _LOCAL.unpack(header)
        if signature != b"PK\x03\x04":
            raise SourceError(f"{self.where}: record {name[:100]!r} has no header. {DAMAGED}")
        return self.region.part(offset + _LOCAL.size + name_length + extra_length, size)


def read_zip(region: Region, where: str) -> ZipIndex:
    """Return the index of the torch.save zip that fills ``region``, checked against its size."""
    try:
        start, size, count = _directory(region, where)
        if size > MAX_DIRECTORY_BYTES or count * _ENTRY.size > size:
            raise SourceError(f"{where} states a directory of {count} records. {DAMAGED}")
        return ZipIndex(region, where, *_entries(region.bytes(start, size), count, where))
    except (struct.error, ValueError) as error:
        raise SourceError(f"{where} has a damaged zip directory ({error}). {DAMAGED}") from error


def _directory(region: Region, where: str) -> tuple[int, int, int]:
    """Return start, size and entry count of the central directory."""
    tail_start = max(0, region.size - TAIL_BYTES)
    tail = region.bytes(tail_start, region.size - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _no_zip(region, where)
    *_, count, size, start, _ = _END.unpack_from(tail, at)
    if at >= _END64_LOCATOR.size:
        signature, _, end64, _ = _END64_LOCATOR.unpack_from(tail, at - _END64_LOCATOR.size)
        if signature == b"PK\x06\x07":
            record = _END64.unpack(region.bytes(end64, _END64.size))
            count, size, start = record[7:10]
    return start, size, count


def _no_zip(region: Region, where: str) -> SourceError:
    return SourceError(
        f"{where} ({region.size} bytes) does not end as a torch file does. It is truncated or no "
        "torch file: fetch it again."
    )


def _entries(
    directory: bytes, count: int, where: str
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    entries: dict[str, tuple[int, int]] = {}
    checksums: dict[str, int] = {}
    at = 0
    top = ""
    for number in range(count):
        fields = _ENTRY.unpack_from(directory, at)
        flags, method, stored, size = fields[3], fields[4], fields[8], fields[9]
        lengths = fields[10:13]
        name_end = at + _ENTRY.size + lengths[0]
        raw_name = directory[at + _ENTRY.size : name_end].decode()
        extra = directory[name_end : name_end + lengths[1]]
        stored, size, offset = _wide(extra, (size, stored, fields[16]))
        if fields[0] != b"PK\x01\x02" or flags & 1 or method or stored != size:
            raise SourceError(f"{where}: record {raw_name[:100]!r} is compressed. {DAMAGED}")
        if number == 0:
            top = raw_name.partition("/")[0] + "/"
        name = raw_name.removeprefix(top)
        if name in entries:
            raise SourceError(f"{where} has the record {name[:100]!r} twice. {DAMAGED}")
        entries[name] = (offset, size)
        checksums[name] = fields[7]
        at = name_end + lengths[1] + lengths[2]
    return entries, checksums


def _wide(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return size, stored size and offset, from the zip64 field where they do not fit 32 bits."""
    wide = list(values)
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            saturated = [n for n, value in enumerate(values) if value == _SATURATED]
            field = extra[at + 4 : at + 4 + length]
            for n, value in zip(saturated, struct.iter_unpack("<Q", field), strict=True):
                wide[n] = value[0]
        at += 4 + length
    return wide[0], wide[1], wide[2]
