"""A share of a file's rows: one file for training, measuring and testing, no row in two of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.data.formats import RowFile
from nemoalign.errors import DataError


@dataclass(frozen=True)
class Part:
    """The rows of a shuffled file between two shares of it; which these are depends on the seed alone."""

    name: str
    start: float
    end: float
    seed: int

    def rows(self, count: int) -> np.ndarray:
        """Return the numbers of the rows of a file of ``count``, in file order.

        Neighbours stay together: the two answers of a pair in two lines, or to one question.
        """
        twos = -(-count // 2)
        # RandomState's stream is frozen for ever, Generator's is not.
        order = np.random.RandomState(self.seed % 2**32).permutation(twos)
        mine = np.sort(order[round(self.start * twos) : round(self.end * twos)])
        rows = (mine[:, None] * 2 + np.arange(2)).ravel()
        return rows[rows < count]


class PartOfFile:
    """The rows of a file that belong to one part."""

    def __init__(self, file: RowFile, part: Part) -> None:
        """Choose the rows; DataError when there are none."""
        self._file, self._rows = file, part.rows(len(file))
        self.path: Path = file.path
        self.blank_lines = file.blank_lines
        self.size_bytes = round(file.size_bytes * len(self._rows) / max(1, len(file)))
        if not len(self._rows):
            raise DataError(
                f"{file.path} has {len(file)} rows, of which model.data.splits_string leaves none for "
                f"{part.name}. Give it a larger share, or more rows."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, row: int) -> str:
        """Return how to find a row in the whole file."""
        return self._file.where(int(self._rows[row]))

    def record(self, row: int) -> dict[str, Any]:
        """Return one record."""
        return self._file.record(int(self._rows[row]))
