"""A file of rows as token ids: a small one whole and from its index, a large one row by row when used.

The first start tokenizes a small file and keeps ids and masks; later starts and other ranks map them. Of
a large file only some rows are tokenized ahead, to tell what is in it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nemoalign.data.formats import AnswerFile, RowFile, Schema, check_rows
from nemoalign.data.templates import Encoded

if TYPE_CHECKING:
    from nemoalign.data.encoder import Encoder
    from nemoalign.data.index import IndexDirectory
    from nemoalign.data.lines import Piece

Look = Callable[[RowFile, Schema, Sequence[int]], Sequence[str | None]]

SAMPLED_ROWS = 1000
"""Rows of a large file that are read ahead: the first tenth of them its first ones, the others spread."""

_BATCH_ROWS = 512
_KNOWN = "known_"
"""How the arrays of numbers beside the text are called."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where what is found in files is kept; nothing here changes a token."""

    index_directory: Path | None = None
    ahead_bytes: int = 256_000_000
    """Text of a file that is tokenized ahead, whole; of a larger one rows are when they are used."""
    cached_tokens: int = 16_000_000
    """Ids of a large file kept in memory, five bytes each; more than any global batch has."""


class EncodedFile:
    """The rows of one file as ids and masks; usable are those with a token to learn.

    Of a large file nobody knows that before, so all of its rows count as usable, and one without such
    a token trains nothing.
    """

    def __init__(
        self,
        file: RowFile,
        schema: Schema,
        encoder: Encoder,
        index: IndexDirectory,
        storage: Storage,
    ) -> None:
        self.file, self.schema = file, schema
        self._encoder = encoder
        self.is_large = file.size_bytes > storage.ahead_bytes and len(file) > SAMPLED_ROWS
        together = file.together if isinstance(file, AnswerFile) else 1
        self.ahead = _spread(len(file), together) if self.is_large else range(len(file))
        """The rows that are read ahead; ``found`` tells of these."""
        key = {"holds": "tokens", "rows": len(self.ahead), "schema": schema.name, **encoder.key()}
        if isinstance(file, AnswerFile):
            key["numbers"] = file.numbers
        self.found = index.arrays(
            file.path, key, lambda: _scanned(file, schema, encoder, self.ahead)
        )
        trained = self.found["trained"] > 0
        all_rows = np.arange(len(file) if trained.any() else 0)
        self.usable = all_rows if self.is_large else np.flatnonzero(trained)
        self._cache = _Cache(storage.cached_tokens)
        self.empty: set[int] = set()
        """Rows of a large file that were used and had no token to learn."""

    def encoded(self, row: int) -> Encoded:
        """Return one row; raises DataError that names it when it is bad."""
        if self.is_large:
            return self._cache.get(row) or self._cache.put(row, self._encode(row))
        ends = self.found["ends"]
        start = int(ends[row - 1]) if row else 0
        ids = np.array(self.found["tokens"][start : int(ends[row])])
        mask = ids < 0
        return Encoded(np.where(mask, ~ids, ids), mask, bool(self.found["truncated"][row]))

    def known(self, row: int) -> Mapping[str, float]:
        """Return the numbers that a judged answer comes with."""
        if self.is_large:
            return self.file.known(row) if isinstance(self.file, AnswerFile) else {}
        return {
            name.removeprefix(_KNOWN): float(values[row])
            for name, values in self.found.items()
            if name.startswith(_KNOWN)
        }

    def encoded_anew(self, row: int) -> Encoded:
        """Return one row with what was cut away from it."""
        return self._encode(row)

    def first_mark(self) -> str | None:
        """Return the first text that a template writes and a row holds already, and where."""
        return self._first("marked", self._encoder.marks)

    def first_unwritten(self) -> str | None:
        """Return the first field of a row that no template writes, and where."""
        return self._first("unwritten", self._encoder.unwritten)

    def _first(self, name: str, look: Look) -> str | None:
        found = np.flatnonzero(self.found[name])
        if not len(found):
            return None
        row = int(self.ahead[found[0]])
        return f'"{look(self.file, self.schema, [row])[0]}" in {self.file.where(row)}'

    def length(self, row: int) -> int:
        """Return the number of tokens a row feeds to the model."""
        if self.is_large:
            return len(self.encoded(row).ids) - 1
        return int(self.lengths[row])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens that the rows read ahead feed to the model."""
        return lengths(self.found["ends"])

    def _encode(self, row: int) -> Encoded:
        encoded = self._encoder.encode(self.file, self.schema, [row])[0]
        if not encoded.loss_mask[1:].any():
            self.empty.add(row)
        return encoded


def lengths(ends: np.ndarray) -> np.ndarray:
    """Return input tokens of rows by where they end; the last id of a row is only predicted."""
    return np.maximum(np.diff(ends, prepend=0) - 1, 0)


class _Cache:
    """The rows used last, up to a number of ids; a length is asked for before its row is."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._rows: OrderedDict[int, Encoded] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, row: int) -> Encoded | None:
        with self._lock:
            return self._rows.get(row)

    def put(self, row: int, encoded: Encoded) -> Encoded:
        with self._lock:
            if row not in self._rows:
                self._rows[row] = encoded
                self._budget -= len(encoded.ids)
            while self._budget < 0:
                _, oldest = self._rows.popitem(last=False)
                self._budget += len(oldest.ids)
        return encoded


def _spread(count: int, together: int) -> Sequence[int]:
    """Return the numbers of the rows that stand for all of ``count``, so many together."""
    first = np.arange(SAMPLED_ROWS // 10 // together)
    last = count // together - 1
    spread = np.linspace(len(first), last, SAMPLED_ROWS // together - len(first)).astype(int)
    groups = np.unique(np.concatenate([first, spread]))
    return [int(group) * together + number for group in groups for number in range(together)]


def _scanned(
    file: RowFile, schema: Schema, encoder: Encoder, rows: Sequence[int]
) -> Iterator[Piece]:
    """Yield ids, where each row ends, and what the report counts, of checked rows."""
    check_rows(file, schema, rows)
    end = 0
    for start in range(0, len(rows), _BATCH_ROWS):
        numbers = rows[start : start + _BATCH_ROWS]
        batch = encoder.encode(file, schema, numbers)
        ends = end + np.cumsum([len(row.ids) for row in batch], dtype=np.int64)
        end = int(ends[-1])
        # A trained token is its id's complement, so that one array holds ids and mask.
        yield "tokens", np.concatenate([np.where(r.loss_mask, ~r.ids, r.ids) for r in batch])
        yield "ends", ends
        yield "trained", np.array([row.loss_mask[1:].sum() for row in batch], np.int32)
        yield "truncated", np.array([row.truncated for row in batch], bool)
        yield "too_long", np.array([row.too_long for row in batch], bool)
        if isinstance(file, AnswerFile):
            known = [file.known(number) for number in numbers]
            for name in known[0]:
                yield _KNOWN + name, np.array([one[name] for one in known], np.float64)
        for name, look in (("marked", encoder.marks), ("unwritten", encoder.unwritten)):
            yield name, np.array([one is not None for one in look(file, schema, numbers)], bool)
        yield "digests", np.array([_digest(row.ids) for row in batch], np.uint64)


def _digest(ids: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")
