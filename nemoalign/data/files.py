"""Files of rows by their content: JSON lines, gzip-compressed ones, Parquet tables, NeMo's packed arrays."""

from __future__ import annotations

import gzip
import importlib
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.archive.pickles import load_pickle
from nemoalign.archive.stand_ins import Record as Pickled
from nemoalign.data.formats import RowFile
from nemoalign.data.index import IndexDirectory
from nemoalign.data.jsonl import JsonlFile, opened
from nemoalign.errors import DataError, NemoAlignError, ResourceError


def open_rows(path: Path, index: IndexDirectory | None = None) -> RowFile:
    """Return the rows of a file; where its lines begin is kept in ``index``.

    Raises:
        SourceError: when it cannot be read.
        DataError: when it is empty or damaged.
        ResourceError: when reading it needs a package that is not installed.
    """
    with opened(path) as file:
        start = file.read(8)
    if start.startswith(b"\x1f\x8b"):
        return JsonlFile(path, index, lambda: _unzipped(path))
    if start.startswith(b"PAR1"):
        return _parquet(path)
    if start.startswith(b"\x93NUMPY"):
        return PackedFile(path)
    return JsonlFile(path, index)


def _parquet(path: Path) -> RowFile:
    try:
        module = importlib.import_module("nemoalign.data.parquet")
    except ImportError as error:
        raise ResourceError(
            f"{path} is a Parquet table, and reading one needs pyarrow: "
            "pip install 'nemoalign[parquet]'"
        ) from error
    return module.ParquetFile(path)


def _unzipped(path: Path) -> Iterator[bytes]:
    """Yield the text of a compressed file."""
    try:
        with gzip.open(path) as compressed:
            while chunk := compressed.read(1 << 20):
                yield chunk
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}). Fetch or compress it again.") from error


class PackedFile:
    """Sequences of a NeMo packed file (``prepare_packed_ft_dataset.py``), one by one again.

    Packs are made anew when a run asks for packing, so that its batches do not depend on the file's.
    """

    blank_lines = 0

    def __init__(self, path: Path) -> None:
        self.path, self.size_bytes = path, path.stat().st_size
        self._packs = _object_array(path)
        self._places = [
            (number, start, end)
            for number, pack in enumerate(self._packs)
            for start, end in self._bounds(number, pack)
        ]
        if not self._places:
            raise DataError(f"{path} is empty: an array of no packs.")

    def __len__(self) -> int:
        return len(self._places)

    def where(self, row: int) -> str:
        """Return how to find a sequence in the file."""
        pack, start, _ = self._places[row]
        return f"{self.path.name} pack {pack} at {start}"

    def record(self, row: int) -> dict[str, Any]:
        """Return one sequence as ids and loss mask; a pack's mask is shifted left by one."""
        number, start, end = self._places[row]
        pack = self._packs[number]
        mask = pack["loss_mask"]
        return {
            "input_ids": pack["input_ids"][start:end],
            "loss_mask": [0, *(int(bool(one)) for one in mask[start : end - 1])],
        }

    def _bounds(self, number: int, pack: object) -> list[tuple[int, int]]:
        fields = ("input_ids", "loss_mask", "seq_start_id")
        if not isinstance(pack, dict) or not all(isinstance(pack.get(f), list) for f in fields):
            raise DataError(
                f"{self.path.name} pack {number} lacks one of {', '.join(fields)}, so the file is none "
                "that NeMo packed."
            )
        ids, mask, starts = (pack[field] for field in fields)
        bounds = [*starts, len(ids)]
        in_order = all(isinstance(at, int) for at in bounds) and bounds == sorted(bounds)
        if not in_order or bounds[0] != 0 or len(mask) != len(ids):
            raise DataError(f"{self.path.name} pack {number} contradicts itself about its lengths.")
        return list(itertools.pairwise(bounds))


def _object_array(path: Path) -> list[Any]:
    """Return the list inside an array of objects, read by the allow-list reader of pickles."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            _, _, kind = read(file)
            content = load_pickle(file.read(), path.name) if kind.hasobject else None
        except (ValueError, NemoAlignError) as error:
            raise DataError(f"{path} is damaged ({error}). Pack it again.") from error
    match content:
        case Pickled(kind="_reconstruct", state=(_, (int(),), _, _, list() as packs)):
            return packs
        case _:
            raise DataError(
                f"{path} is an array of {kind}, not of packs. Give rows as JSON lines, or a file that "
                "NeMo's prepare_packed_ft_dataset.py wrote."
            )
