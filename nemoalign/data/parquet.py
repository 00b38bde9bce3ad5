"""Parquet tables as rows; needs pyarrow, so it is imported only when a file is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from nemoalign.errors import DataError


class ParquetFile:
    """Rows of a Parquet table; one row group is in memory at a time."""

    blank_lines = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._table = parquet.ParquetFile(path)
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} is damaged ({error}). Fetch it again.") from error
        groups = range(self._table.num_row_groups)
        self.size_bytes = sum(self._table.metadata.row_group(n).total_byte_size for n in groups)
        sizes = [self._table.metadata.row_group(group).num_rows for group in groups]
        self._starts = np.cumsum([0, *sizes])
        if not self._starts[-1]:
            raise DataError(f"{path} is empty: a table of no rows.")
        self._loaded: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def where(self, row: int) -> str:
        """Return how to find a row in the file."""
        return f"{self.path.name} row {row}"

    def record(self, row: int) -> dict[str, Any]:
        """Return one row; fields that are null in it are left out."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        loaded, rows = self._loaded
        if group != loaded:
            rows = self._table.read_row_group(group).to_pylist()
            self._loaded = (group, rows)
        record = rows[row - int(self._starts[group])]
        return {name: value for name, value in record.items() if value is not None}
