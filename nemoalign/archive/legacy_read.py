"""Find the records of a file that torch.save wrote before 1.6: pickles, then storages, end to end.

Five pickles follow each other: a magic number, a version, the machine, the saved value, and the keys
of its storages. The storages come in that order, each after its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemoalign.archive.dtypes import dtype
from nemoalign.archive.pickles import MAX_BYTES, Loaded, load_next
from nemoalign.archive.regions import Region
from nemoalign.archive.stand_ins import StorageRef
from nemoalign.archive.store import DAMAGED
from nemoalign.errors import SourceError

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"

_FIRST_BYTES = 1 << 20
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class LegacyIndex:
    """The records of one old torch file, under the names they would have in a zip."""

    where: str
    entries: Mapping[str, Region]
    checksums: dict[str, int] = field(init=False)
    """0 of every record: the format keeps no sums."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "checksums", dict.fromkeys(self.entries, 0))

    def entry(self, name: str) -> Region:
        """Return the bytes of one record; raises SourceError when it is missing."""
        if name not in self.entries:
            raise SourceError(f"{self.where} has no record {name[:100]!r}. {DAMAGED}")
        return self.entries[name]


def is_legacy(region: Region) -> bool:
    """True for a file in the format from before torch 1.6."""
    return region.size >= len(MAGIC) and region.bytes(0, len(MAGIC)) == MAGIC


def read_legacy(region: Region, where: str) -> LegacyIndex:
    """Return the index of the old torch file that fills ``region``, checked against its size."""
    value, keys = _pickles(region, where)
    entries = {"data.pkl": region.part(value.start, value.end - value.start)}
    at = keys.end
    for key in _checked_keys(keys.value, value.storages, where):
        storage = value.storages[key]
        stated = int.from_bytes(region.bytes(at, _LENGTH_BYTES), "little", signed=True)
        if stated != storage.numel:
            raise SourceError(
                f"{where}: storage {key[:40]!r} has {stated} elements where {storage.numel} are "
                f"expected. {DAMAGED}"
            )
        size = storage.numel * (dtype(storage.dtype).itemsize if storage.dtype else 1)
        entries[f"data/{key}"] = region.part(at + _LENGTH_BYTES, size)
        at += _LENGTH_BYTES + size
    if at != region.size:
        raise SourceError(f"{where} goes on after its last storage. {DAMAGED}")
    return LegacyIndex(where, entries)


def _pickles(region: Region, where: str) -> tuple[Loaded, Loaded]:
    """Return the saved value and the keys of its storages, reading no more of the file than needed."""
    length = _FIRST_BYTES
    while True:
        data = region.bytes(0, min(length, region.size))
        try:
            return _parsed(data, where)
        except SourceError:
            if len(data) == region.size or length >= MAX_BYTES:
                raise
        length *= 8


def _parsed(data: bytes, where: str) -> tuple[Loaded, Loaded]:
    version = load_next(data, len(MAGIC) + 1, where)
    machine = load_next(data, version.end, where)
    match version.value, machine.value:
        case (1001, {"little_endian": True}):
            value = load_next(data, machine.end, where)
            return value, load_next(data, value.end, where)
        case (1001, {"little_endian": False}):
            raise SourceError(
                f"{where} was written on a big-endian machine. Load it there with torch.load and "
                "save the tensors as safetensors."
            )
        case _:
            raise SourceError(f"{where} is no torch file of a known version. {DAMAGED}")


def _checked_keys(keys: Any, storages: Mapping[str, StorageRef], where: str) -> list[str]:
    match keys:
        case [*names] if len(names) == len(storages) and all(
            n in storages for n in map(str, names)
        ):
            if len({str(name) for name in names}) == len(names):
                return [str(name) for name in names]
        case _:
            pass
    raise SourceError(f"{where} lists other storages than its value has. {DAMAGED}")
