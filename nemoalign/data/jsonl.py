"""JSONL files: lines by byte offset, records parsed when asked for, line numbers in every complaint."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from nemoalign.errors import DataError, SourceError

_CHUNK_BYTES = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"


class JsonlFile:
    """One record per line; the file stays on disk, mapped, and only line starts are in memory.

    Lines of nothing but white space are skipped and counted in ``blank_lines``; line numbers count
    them, as an editor does.
    """

    def __init__(self, path: Path, content: mmap.mmap | bytes | None = None) -> None:
        """Find the lines of ``path``, or of ``content`` where that is not the file's own bytes."""
        self.path = path
        self._bytes = _mapped_file(path) if content is None else content
        ends = _line_ends(self._bytes)
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        filled = np.array(
            [bool(self._bytes[s:e].strip(_BLANK)) for s, e in zip(starts, ends, strict=True)], bool
        )
        self._numbers = np.flatnonzero(filled) + 1
        self._starts, self._ends = starts[filled], ends[filled]
        self.blank_lines = int(len(ends) - filled.sum())
        if not len(self._starts):
            raise DataError(f"{path} is empty. One JSON object per line is needed.")

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, row: int) -> str:
        """Return how to find a row in the file: ``train.jsonl line 812``."""
        return f"{self.path.name} line {self._numbers[row]}"

    def record(self, row: int) -> dict[str, Any]:
        """Return one parsed line; raises DataError when it is not a JSON object in UTF-8."""
        line = self._bytes[self._starts[row] : self._ends[row]]
        try:
            record = json.loads(line.removeprefix(_BOM).decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.where(row)} is not UTF-8 (byte 0x{line[error.start]:02x} at position "
                f"{error.start + 1}). Convert the file: iconv -t UTF-8"
            ) from error
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg} at column {error.colno}"
            raise DataError(
                f"{self.where(row)} is not JSON ({reason}).{self._advice(row)}"
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{self.where(row)} is a JSON {kind_of(record)}, not an object with fields."
                f"{self._advice(row)}"
            )
        return record

    def _advice(self, row: int) -> str:
        if row == 0 and self._bytes[:4096].removeprefix(_BOM).lstrip(_BLANK).startswith(b"["):
            name = self.path.with_suffix("").name
            return (
                " The file seems to be one JSON array; one object per line is needed: "
                f"jq -c '.[]' {self.path.name} > {name}.lines.jsonl"
            )
        return " Every line must be one JSON object."


def kind_of(value: object) -> str:
    """Return what JSON calls a value."""
    names = {str: "string", bool: "boolean", dict: "object", list: "array", type(None): "null"}
    return names.get(type(value), "number")


def mapped(file: IO[bytes]) -> mmap.mmap | bytes:
    """Return the bytes of an open file without reading them; it may be closed and removed then."""
    file.flush()
    if not os.fstat(file.fileno()).st_size:
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _mapped_file(path: Path) -> mmap.mmap | bytes:
    try:
        with path.open("rb") as file:
            return mapped(file)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read ({error.strerror}). Check the path after --data or --val."
        ) from error


def _line_ends(content: mmap.mmap | bytes) -> np.ndarray:
    """Return the offset of every newline, and of the end where the last line has none."""
    found = [np.empty(0, np.int64)]
    for start in range(0, len(content), _CHUNK_BYTES):
        chunk = np.frombuffer(content[start : start + _CHUNK_BYTES], np.uint8)
        found.append(np.flatnonzero(chunk == ord("\n")) + start)
    if len(content) and content[-1:] != b"\n":
        found.append(np.array([len(content)]))
    return np.concatenate(found)
