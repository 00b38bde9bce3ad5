"""Rows of text files as token ids, ready before the first step: every row is read and counted.

The scan tokenizes everything once, so bad rows, rows without a trained token and lengths are known
at the start. Ids are kept while they fit a budget; beyond it a row is tokenized again when used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nemoalign.data.encoder import Encoder, SftSettings
from nemoalign.data.files import open_rows
from nemoalign.data.formats import CHAT_TEMPLATE_SCHEMAS, RowFile, Schema, check_rows, choose_schema
from nemoalign.data.report import DataReport, FileReport
from nemoalign.data.sampler import MISSING_ROW
from nemoalign.data.templates import Encoded
from nemoalign.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer

_BATCH_ROWS = 512


@dataclass(frozen=True)
class Sample:
    """One row: ids, and which of them are trained (``loss_mask[t]`` says it of ``tokens[t]``)."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    source: str
    is_filler: bool = False


class SftDataset:
    """The usable rows of some files, in file order."""

    def __init__(
        self,
        files: Sequence[tuple[Path, float]],
        tokenizer: Tokenizer,
        settings: SftSettings,
        split: str = "train",
    ) -> None:
        """Read, check and count every row.

        Args:
            files: paths with how often an epoch uses each of their rows: 1 once, 2 twice, 0.5 every
                other one.
            tokenizer: the checkpoint's.
            settings: how rows become samples.
            split: what the report calls this data.

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
        self._budget = settings.cached_tokens
        self._files = [self._scan(Path(path), weight) for path, weight in files]
        rows = [_weighted(np.flatnonzero(f.lengths), f.weight) for f in self._files]
        self._rows = np.concatenate(rows)
        self._file_numbers = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        if not len(self._rows):
            raise DataError(
                f"No row of the {split} data can be used: "
                + "; ".join(self.report().lines())
                + ". "
                f"Raise --seq-len (now {settings.max_seq_length}) or give other data."
            )
        self.lengths = np.concatenate(
            [f.lengths[r] for f, r in zip(self._files, rows, strict=True)]
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return one row; -1 (the sampler's missing row) is one that trains nothing."""
        if index == MISSING_ROW:
            filler = np.full(2, self.tokenizer.eos_id, np.int32)
            return Sample(filler, np.zeros(2, bool), "filler", is_filler=True)
        scanned, row = self._files[self._file_numbers[index]], int(self._rows[index])
        encoded = (
            scanned.cache.get(row) or self._encoder.encode(scanned.file, scanned.schema, [row])[0]
        )
        return Sample(encoded.ids, encoded.loss_mask, scanned.file.where(row))

    def place(self, index: int) -> str:
        """Return file and line of a row."""
        scanned = self._files[self._file_numbers[index]]
        return scanned.file.where(int(self._rows[index]))

    @property
    def has_chat(self) -> bool:
        """True when a file holds conversations that the tokenizer's chat template writes."""
        return any(scanned.schema.name in CHAT_TEMPLATE_SCHEMAS for scanned in self._files)

    @property
    def has_nemo_chat(self) -> bool:
        """True when a file holds conversations that NeMo's turn tokens write."""
        return any(scanned.schema.name == "nemo-chat" for scanned in self._files)

    @property
    def has_prompts(self) -> bool:
        """True when a file holds rows that the prompt template writes."""
        return any(scanned.schema.name.startswith("prompt-") for scanned in self._files)

    def length(self, index: int) -> int:
        """Return the number of tokens a row feeds to the model."""
        return int(self.lengths[index])

    def report(self) -> DataReport:
        """Return what was found in the files."""
        return DataReport(
            split=self.split,
            max_seq_length=self.settings.max_seq_length,
            files=tuple(scanned.report for scanned in self._files),
        )

    def _scan(self, path: Path, weight: float) -> _Scanned:
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"--data {path}:{weight} has a weight that is no positive number. Use 1."
            )
        file = open_rows(path)
        schema = choose_schema(file, self.template, self.settings.format)
        check_rows(file, schema)
        scanned = _Scanned(file, schema, weight, np.zeros(len(file), np.int32))
        report = scanned.report
        seen: set[int] = set()
        for rows in _batches(len(file)):
            for row, encoded in zip(rows, self._encoder.encode(file, schema, rows), strict=True):
                trained = int(encoded.loss_mask[1:].sum())
                report.count(len(encoded.ids) - 1, trained, encoded.truncated)
                seen.add(hash(encoded.ids.tobytes()))
                if trained:
                    scanned.lengths[row] = len(encoded.ids) - 1
                    self._remember(scanned, row, encoded)
        report.duplicates = report.rows - len(seen)
        return scanned

    def _remember(self, scanned: _Scanned, row: int, encoded: Encoded) -> None:
        if self._budget >= len(encoded.ids):
            self._budget -= len(encoded.ids)
            scanned.cache[row] = encoded


@dataclass
class _Scanned:
    """One file: where its rows are, what they are, and how long (0: not usable)."""

    file: RowFile
    schema: Schema
    weight: float
    lengths: np.ndarray
    cache: dict[int, Encoded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.report = FileReport(
            str(self.file.path), self.schema.name, self.file.blank_lines, self.weight
        )


def _weighted(usable: np.ndarray, weight: float) -> np.ndarray:
    """Return row numbers as often as the weight says; a fraction takes them evenly spread."""
    whole, part = divmod(weight, 1)
    steps = np.floor(np.arange(len(usable) + 1) * part)
    return np.concatenate([np.tile(usable, int(whole)), usable[np.diff(steps) > 0]])


def _batches(count: int) -> Iterator[range]:
    for start in range(0, count, _BATCH_ROWS):
        yield range(start, min(start + _BATCH_ROWS, count))
