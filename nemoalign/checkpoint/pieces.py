"""Every run of bytes of a checkpoint that holds weights, with the sum its file states of it.

torch files carry a CRC-32 of every record; what we write carries one of every tensor as well, in a
manifest (``.nemo``) or in ``conversion.json`` (Hugging Face). safetensors by themselves carry none.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemoalign.archive.dist_index import INDEX_NAME, read_index
from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.files import Container, Region
from nemoalign.archive.safetensors import read_header
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.sources.nemo import MANIFEST_NAME
from nemoalign.checkpoint.targets.writing import REPORT_NAME
from nemoalign.errors import SourceError
from nemoalign.weights.names import canonical_name, placed_name

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
BLOCK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 256 << 20

_EXPONENTS = {
    "float64": 0x7FF0 << 48,
    "float32": 0x7F80 << 16,
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
}
"""The bits that are all set in an infinity or NaN."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of bytes: where it is, what it holds and what is known of it beforehand."""

    file: str
    what: str
    region: Region
    crc: int | None
    """The CRC-32 stored beside it; None when there is none."""
    manifest: int | None = None
    """The CRC-32 that a manifest of ours states as well."""
    dtype: str | None = None
    """Element type, when it is a tensor."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What reading one piece found."""

    piece: Piece
    crc: int
    not_finite: int


def read_piece(piece: Piece) -> Reading:
    """Read every byte of a piece once, in blocks, for its CRC-32 and its NaNs and infinities."""
    crc = not_finite = 0
    for start in range(0, piece.region.size, BLOCK_BYTES):
        block = piece.region.map(start, min(BLOCK_BYTES, piece.region.size - start))
        crc = zlib.crc32(block.data, crc)
        not_finite += count_not_finite(block, piece.dtype or "")
    return Reading(piece=piece, crc=crc, not_finite=not_finite)


def count_not_finite(raw: Array, kind: str) -> int:
    """Return how many elements of raw storage of type ``kind`` are NaN or infinite."""
    mask = _EXPONENTS.get(kind)
    if mask is None:
        return 0
    bits = raw.view(f"<u{dtype(kind).itemsize}")
    return int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask))


def pieces_of(container: Container) -> Iterator[Piece]:
    """Yield every piece of a checkpoint; nothing for a format that states and needs no sums.

    Raises:
        SourceError: when an index or a header is damaged, or a file it names is missing.
    """
    sums = _summed_tensors(container)
    for name, region in container.members.items():
        folder, _, base = name.rpartition("/")
        if base == INDEX_NAME:
            yield from _dist_pieces(container, folder)
        elif name.endswith(".safetensors"):
            yield from _safetensors_pieces(name, region, sums)
        elif (
            name.endswith(TORCH_SUFFIXES) and region.bytes(0, min(4, region.size)) == b"PK\x03\x04"
        ):
            torch_file = TorchFile(region, f"{container.path}: {name}")
            yield from _torch_pieces(name, torch_file, manifest=_file_sums(container, name))


def _dist_pieces(container: Container, folder: str) -> Iterator[Piece]:
    manifest = read_manifest(container)
    inside = container.under(folder) if folder else container
    files = {(region.path, region.offset): name for name, region in inside.members.items()}
    starts = sorted(files)
    for key, stored in read_index(inside).tensors.items():
        for record, start in zip(stored.records, stored.starts, strict=True):
            offsets = tuple(map(int, start))
            at = max(place for place in starts if place <= (record.path, record.offset))
            file = f"{folder}/{files[at]}".lstrip("/")
            stated = manifest.pop((key, offsets), None)
            torch_file = TorchFile(record, f"{container.path}: {file}: {key}")
            sums = {} if stated is None else {"": stated}
            yield from _torch_pieces(file, torch_file, _chunk_name(key, offsets), sums)
    for key, offsets in manifest:
        raise SourceError(
            f'{container.path} lacks "{_chunk_name(key, offsets)}", which its {MANIFEST_NAME} states.'
        )


def _torch_pieces(
    file: str, torch_file: TorchFile, chunk: str = "", manifest: Mapping[str, int] | None = None
) -> Iterator[Piece]:
    """Yield the records of one torch file; ``manifest`` states sums by the tensor's name in it."""
    stated = manifest or {}
    records = torch_file.records
    lost = next((name for name in stated if name not in torch_file.refs), None)
    if lost is not None:
        raise SourceError(f'{torch_file.where} lacks "{lost}", which its {MANIFEST_NAME} states.')
    has_sums = any(crc for _, crc in records.values())
    names = {f"data/{ref.storage.key}": (name, ref) for name, ref in torch_file.refs.items()}
    for record, (region, crc) in records.items():
        name, ref = names.get(record, (record, None))
        yield Piece(
            file=file,
            what=chunk or canonical_name(name) or name,
            region=region,
            crc=crc if has_sums else None,
            manifest=stated.get(name) if ref else None,
            dtype=ref.info.dtype if ref else None,
        )


def _safetensors_pieces(file: str, region: Region, sums: Mapping[str, int]) -> Iterator[Piece]:
    for name, (data, start, info) in read_header(region, file).items():
        yield Piece(
            file=file,
            what=name,
            region=data.part(start, info.size_bytes),
            crc=None,
            manifest=sums.get(name),
            dtype=info.dtype,
        )


def _chunk_name(key: str, offsets: tuple[int, ...]) -> str:
    name = canonical_name(key) or key
    return placed_name(name, offsets)


def read_manifest(container: Container) -> dict[tuple[str, tuple[int, ...]], int]:
    """Return the CRC-32 of every chunk that the manifest of an archive of ours states.

    Raises:
        SourceError: when the manifest is damaged.
    """
    content = _json_member(container, MANIFEST_NAME)
    try:
        return {
            (str(key), tuple(map(int, chunk["offsets"]))): int(chunk["crc32"], 16)
            for key, chunks in content.get("chunks", {}).items()
            for chunk in chunks
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(container, MANIFEST_NAME, error) from error


def _file_sums(container: Container, file: str) -> dict[str, int]:
    """Return the CRC-32 of every tensor of a rank's file that the manifest of ours states."""
    content = _json_member(container, MANIFEST_NAME)
    try:
        return {str(k): int(crc, 16) for k, crc in content.get("files", {}).get(file, {}).items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise _damaged(container, MANIFEST_NAME, error) from error


def _summed_tensors(container: Container) -> dict[str, int]:
    """Return the CRC-32 of every tensor that ``conversion.json`` in an export of ours states."""
    if MANIFEST_NAME in container.members:
        return {}  # it states them by chunk, as torch_dist needs it
    content = _json_member(container, REPORT_NAME)
    try:
        return {
            str(name): int(crc, 16)
            for row in content.get("tensors", [])
            for name, crc in zip(row["target"], row["crc32"], strict=True)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(container, REPORT_NAME, error) from error


def _json_member(container: Container, name: str) -> dict[str, Any]:
    if name not in container.members:
        return {}
    try:
        content = json.loads(container.members[name].read(MAX_MANIFEST_BYTES))
    except (ValueError, RecursionError) as error:
        raise _damaged(container, name, error) from error
    return content if isinstance(content, dict) else {}


def _damaged(container: Container, name: str, error: Exception) -> SourceError:
    return SourceError(f"{container.path}: {name} is damaged ({error}). Fetch it again.")
