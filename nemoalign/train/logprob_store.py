"""Log-probs of answers on disk, found by what was fed: computed once, whatever run asks next.

A store is a directory. Every process that adds appends to a file of its own, ``*.part``: records of 20
bytes, a key of 16 and a little-endian float32. A record cut off by a crash is left out.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

KEY_BYTES = 16
RECORD = np.dtype([("key", f"V{KEY_BYTES}"), ("logprob", "<f4")])


class LogprobStore:
    """What a directory knows by a listing of its files; what is added since, ``load`` makes known."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._part: IO[bytes] | None = None
        self.load({})

    def listing(self) -> dict[str, int]:
        """Return name and size of every file there is now."""
        return {part.name: part.stat().st_size for part in sorted(self.directory.glob("*.part"))}

    def load(self, listing: Mapping[str, int]) -> None:
        """Know what the files of ``listing`` hold; processes that are given the same know the same.

        Of a key that is there twice, the first value counts.
        """
        parts = [_records(self.directory / name, size) for name, size in listing.items()]
        records = np.concatenate([np.empty(0, RECORD), *parts])
        self._keys, first = np.unique(_sortable(records["key"]), return_index=True)
        self._logprobs = records["logprob"][first]

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def size(self) -> int:
        """Bytes the known log-probs take in memory."""
        return self._keys.nbytes + self._logprobs.nbytes

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the log-prob of each key, fp32 [keys]; NaN where it is not known."""
        found = np.full(len(keys), np.nan, np.float32)
        if len(self._keys) and keys:
            asked = _sortable(np.frombuffer(b"".join(keys), f"V{KEY_BYTES}"))
            places = np.searchsorted(self._keys, asked).clip(max=len(self._keys) - 1)
            known = self._keys[places] == asked
            found[known] = self._logprobs[places[known]]
        return found

    def add(self, keys: Sequence[bytes], logprobs: Sequence[float] | np.ndarray) -> None:
        """Append log-probs [keys] to this process' file; ``load`` makes them known.

        Raises:
            OSError: when the disk refuses.
        """
        records = np.empty(len(keys), RECORD)
        records["key"] = np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")
        records["logprob"] = logprobs
        if self._part is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._part = (self.directory / f"{uuid.uuid4().hex}.part").open("xb")
        self._part.write(records.tobytes())
        self._part.flush()

    def close(self) -> None:
        """Finish this process' file."""
        if self._part is not None:
            os.fsync(self._part.fileno())
            self._part.close()
            self._part = None


def _records(part: Path, size: int) -> np.ndarray:
    return np.fromfile(part, RECORD, count=size // RECORD.itemsize)


def _sortable(keys: np.ndarray) -> np.ndarray:
    """Return keys as pairs of numbers: numpy sorts no raw bytes, and cuts strings at zeros."""
    return np.ascontiguousarray(keys).view([("high", "<u8"), ("low", "<u8")])
