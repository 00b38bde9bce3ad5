"""Rows of some files as samples, by number; what is in the files is known before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nemoalign.data.encoded import EncodedFile, Storage
from nemoalign.data.encoder import Encoder, SftSettings
from nemoalign.data.files import open_rows
from nemoalign.data.formats import CHAT_TEMPLATE_SCHEMAS, RowFile, Schema, choose_schema
from nemoalign.data.index import IndexDirectory
from nemoalign.data.parts import PartOfFile
from nemoalign.data.report import DataReport, FileReport
from nemoalign.data.sampler import MISSING_ROW
from nemoalign.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nemoalign.data.templates import Encoded
    from nemoalign.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """One row: ids, and which of them are trained (``loss_mask[t]`` says it of ``tokens[t]``)."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    source: str
    is_filler: bool = False


class SftDataset:
    """The usable rows of some files, in file order."""

    answers = 1
    """Answers of a row, each a document of its own."""

    def __init__(
        self,
        files: Sequence[tuple[Path, float]],
        tokenizer: Tokenizer,
        settings: SftSettings,
        split: str = "train",
        storage: Storage | None = None,
    ) -> None:
        """Read, check and count the rows: all of a small file, some of a large one.

        Args:
            files: paths with how often an epoch uses each of their rows: 1 once, 2 twice, 0.5 every
                other one.
            tokenizer: the checkpoint's.
            settings: how rows become samples.
            split: what the report calls this data.
            storage: where what is found is kept for the next start; None keeps nothing.

        Raises:
            DataError: for a bad row, naming file and line, and when no row is usable.
            ConfigError: for settings that no data could satisfy.
        """
        if settings.max_seq_length < 8:
            raise ConfigError(
                f"--seq-len {settings.max_seq_length} leaves no room for text. Use 8 or more."
            )
        self.settings, self.split, self.tokenizer = settings, split, tokenizer
        self._encoder = Encoder(tokenizer, settings)
        self.template = self._encoder.template
        self._storage = storage or Storage()
        self._index = IndexDirectory(self._storage.index_directory)
        self._weights = [_checked(path, weight) for path, weight in files]
        self.files = [self._encoded(Path(path)) for path, _ in files]
        usable = [self._usable(file) for file in self.files]
        rows = [_weighted(part, w) for part, w in zip(usable, self._weights, strict=True)]
        self._rows = np.concatenate(rows)
        self._file_numbers = np.repeat(
            np.arange(len(rows), dtype=np.uint16), [len(part) for part in rows]
        )
        if not len(self._rows):
            raise DataError(
                f"No row of the {split} data can be used: "
                + "; ".join(self.report().lines())
                + ". "
                f"Raise --seq-len (now {settings.max_seq_length}) or give other data."
            )
        parts = () if self.has_large else map(self._lengths, self.files, rows)
        self.lengths = None if self.has_large else np.concatenate(list(parts))
        """Input tokens of every row; None with a large file, whose rows are asked one by one."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return one row; -1 (the sampler's missing row) is one that trains nothing."""
        if index == MISSING_ROW:
            filler = np.full(2, self.tokenizer.eos_id, np.int32)
            return Sample(filler, np.zeros(2, bool), "filler", is_filler=True)
        file, row = self._at(index)
        encoded = file.encoded(row)
        return Sample(encoded.ids, encoded.loss_mask, file.file.where(row))

    def encoded_anew(self, index: int) -> list[Encoded]:
        """Return the texts of one row with what was cut away from them."""
        file, row = self._at(index)
        return [file.encoded_anew(row)]

    def what(self, index: int, place: int) -> str:
        """Return what a text of one row is, where that is not plain."""
        del index, place
        return ""

    def of_batch(self, batch: Sequence[int] | np.ndarray) -> Callable[[int], object]:
        """Return how to read the rows of one global batch; some rows depend on their neighbours."""
        del batch
        return self.__getitem__

    def place(self, index: int) -> str:
        """Return file and line of a row."""
        file, row = self._at(index)
        return file.file.where(row)

    @property
    def has_large(self) -> bool:
        """True when rows of some file are tokenized only when they are used."""
        return any(file.is_large for file in self.files)

    @property
    def empty_rows(self) -> int:
        """Rows of large files that were used so far and had no token to learn."""
        return sum(len({row // self.answers for row in file.empty}) for file in self.files)

    @property
    def has_chat(self) -> bool:
        """True when a file holds conversations that the tokenizer's chat template writes."""
        return any(file.schema.name in CHAT_TEMPLATE_SCHEMAS for file in self.files)

    @property
    def has_nemo_chat(self) -> bool:
        """True when a file holds conversations that NeMo's turn tokens write."""
        return any(file.schema.name == "nemo-chat" for file in self.files)

    @property
    def has_prompts(self) -> bool:
        """True when a file holds rows that the prompt template writes."""
        return any(file.schema.name.startswith("prompt-") for file in self.files)

    @property
    def sources(self) -> list[tuple[str, int]]:
        """Names of the files as metrics have them, and the number of the row after each one's last."""
        ends = np.cumsum(np.bincount(self._file_numbers, minlength=len(self.files)))
        found: dict[str, int] = {}
        for file, end in zip(self.files, ends, strict=True):
            stem = Path(file.file.path.name.removesuffix(".gz")).stem
            found[stem if stem not in found else f"{stem}-{len(found) + 1}"] = int(end)
        return list(found.items())

    def length(self, index: int) -> int:
        """Return the number of tokens a row feeds to the model."""
        file, row = self._at(index)
        return file.length(row)

    def report(self) -> DataReport:
        """Return what was found in the files."""
        return DataReport(
            split=self.split,
            max_seq_length=self.settings.max_seq_length,
            files=tuple(
                self._file_report(file, weight)
                for file, weight in zip(self.files, self._weights, strict=True)
            ),
            repeated=_repeated([f.found["digests"] for f in self.files if not f.is_large]),
            not_kept=self._index.problem,
        )

    def _file_report(self, file: EncodedFile, weight: float) -> FileReport:
        return FileReport.of(file, weight, self.answers)

    def _at(self, index: int) -> tuple[EncodedFile, int]:
        return self.files[self._file_numbers[index]], int(self._rows[index])

    def _encoded(self, path: Path) -> EncodedFile:
        file, schema = self._open(path)
        return EncodedFile(file, schema, self._encoder, self._index, self._storage)

    def _open(self, path: Path) -> tuple[RowFile, Schema]:
        """Return the rows of a file and how they are read."""
        file = self._rows_of(path)
        return file, choose_schema(file, self.template, self.settings.format)

    def _rows_of(self, path: Path) -> RowFile:
        """Return the rows of a file that belong to this split."""
        file = open_rows(path, self._index)
        return file if self.settings.part is None else PartOfFile(file, self.settings.part)

    def _usable(self, file: EncodedFile) -> np.ndarray:
        """Return the numbers of the rows a run takes from a file."""
        return file.usable

    def _lengths(self, file: EncodedFile, rows: np.ndarray) -> np.ndarray:
        """Return how many tokens some rows of a file feed to the model."""
        return file.lengths[rows]


def _repeated(digests: list[np.ndarray]) -> int:
    """Return how many different rows of a file an earlier file has too."""
    if not digests:
        return 0
    each = [np.unique(part) for part in digests]
    return sum(map(len, each)) - len(np.unique(np.concatenate(each)))


def _checked(path: Path, weight: float) -> float:
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"--data {path}:{weight} has a weight that is no positive number. Use 1.")
    return weight


def _weighted(usable: np.ndarray, weight: float) -> np.ndarray:
    """Return row numbers as often as the weight says; a fraction takes them evenly spread."""
    whole, part = divmod(weight, 1)
    if not part:
        return np.tile(usable, int(whole))
    steps = np.floor(np.arange(len(usable) + 1) * part)
    return np.concatenate([np.tile(usable, int(whole)), usable[np.diff(steps) > 0]])
