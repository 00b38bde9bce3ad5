"""JSONL files: lines by byte offset, records parsed when asked for, line numbers in every complaint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from nemoalign.data.index import IndexDirectory
from nemoalign.data.lines import LineFinder, Piece
from nemoalign.errors import DataError, SourceError

_CHUNK_BYTES = 1 << 22
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"


class JsonlFile:
    """One record per line; the file stays on disk, and only where its lines begin is known.

    Lines of nothing but white space are skipped and counted in ``blank_lines``; line numbers count
    them, as an editor does.
    """

    def __init__(
        self,
        path: Path,
        index: IndexDirectory | None = None,
        chunks: Callable[[], Iterator[bytes]] | None = None,
    ) -> None:
        """Find the lines of ``path``, or those of its unpacked text, which ``chunks`` yields."""
        self.path = path
        self._file = opened(path)
        self._index = (index or IndexDirectory()).arrays(
            path,
            {"holds": "lines" if chunks is None else "text"},
            lambda: _lines(path) if chunks is None else _text_and_lines(chunks()),
        )
        self._starts, self._blanks = self._index["starts"], self._index["blanks"]
        self.blank_lines = len(self._blanks)
        if not len(self._starts):
            raise DataError(f"{path} is empty. One JSON object per line is needed.")
        text = self._index.get("text")
        self.size_bytes = os.fstat(self._file.fileno()).st_size if text is None else len(text)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, row: int) -> str:
        """Return how to find a row in the file: ``train.jsonl line 812``."""
        blank = int(np.searchsorted(self._blanks, row, side="right"))
        return f"{self.path.name} line {row + blank + 1}"

    def record(self, row: int) -> dict[str, Any]:
        """Return one parsed line; raises DataError when it is not a JSON object in UTF-8."""
        is_last = row + 1 == len(self._starts)
        end = self.size_bytes if is_last else int(self._starts[row + 1])
        line = self._read(int(self._starts[row]), end).rstrip(_BLANK)
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
        start = self._read(0, min(4096, self.size_bytes))
        if row == 0 and start.removeprefix(_BOM).lstrip(_BLANK).startswith(b"["):
            name = self.path.with_suffix("").name
            return (
                " The file seems to be one JSON array; one object per line is needed: "
                f"jq -c '.[]' {self.path.name} > {name}.lines.jsonl"
            )
        return " Every line must be one JSON object."

    def _read(self, start: int, end: int) -> bytes:
        # Not mapped: what was read would count as this process's memory, up to the whole file.
        text = self._index.get("text")
        if text is not None:
            return text[start:end].tobytes()
        return os.pread(self._file.fileno(), end - start, start)


def kind_of(value: object) -> str:
    """Return what JSON calls a value."""
    names = {str: "string", bool: "boolean", dict: "object", list: "array", type(None): "null"}
    return names.get(type(value), "number")


def opened(path: Path) -> IO[bytes]:
    """Return a file of rows, open for reading; SourceError when that fails."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error


def _lines(path: Path) -> Iterator[Piece]:
    finder = LineFinder()
    chunk = bytearray(_CHUNK_BYTES)
    with opened(path) as file:
        while size := _filled_with(file, chunk, path):
            yield from finder.feed(memoryview(chunk)[:size])
    yield from finder.finish()


def _filled_with(file: Any, chunk: bytearray, path: Path) -> int:
    try:
        return file.readinto(chunk)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> SourceError:
    return SourceError(
        f"{path} cannot be read ({error.strerror}). Check the path after --data or --val."
    )


def _text_and_lines(chunks: Iterator[bytes]) -> Iterator[Piece]:
    finder = LineFinder()
    yield "text", np.empty(0, np.uint8)
    for chunk in chunks:
        yield "text", np.frombuffer(chunk, np.uint8)
        yield from finder.feed(chunk)
    yield from finder.finish()
