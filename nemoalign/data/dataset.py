"""Rows of text files as token ids, ready before the first step: every row is read and counted.

The scan tokenizes everything once, so bad rows, rows without a trained token and lengths are known
at the start. Ids are kept while they fit a budget; beyond it a row is tokenized again when used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from nemoalign.data.chat import ChatRules, Mask, encode_chats, render_row
from nemoalign.data.formats import ChatRow, PromptRow, Schema, check_rows, choose_schema, read_rows
from nemoalign.data.jsonl import JsonlFile
from nemoalign.data.report import DataReport, FileReport
from nemoalign.data.sampler import MISSING_ROW
from nemoalign.data.templates import (
    DEFAULT_TEMPLATE,
    Encoded,
    PromptTemplate,
    RowRules,
    encode_prompts,
)
from nemoalign.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer

_BATCH_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """How rows become training samples; NeMo's names of ``model.data.train_ds`` where it has them.

    ``prompt_template`` is what the user asked for; without it ``checkpoint_template`` and then
    ``{input} {output}`` are used. ``label_key`` and ``truncation_field`` follow from the template
    when None.
    """

    max_seq_length: int
    format: str = "auto"
    prompt_template: str | None = None
    checkpoint_template: str | None = None
    label_key: str | None = None
    truncation_field: str | None = None
    truncation_method: Literal["left", "right"] = "right"
    add_bos: bool = False
    add_sep: bool = False
    add_eos: bool = True
    mask: Mask = "assistant"
    cached_tokens: int = 50_000_000
    """Ids kept in memory, five bytes each."""

    def template(self) -> PromptTemplate:
        """Return the prompt template in force; raises ConfigError when it makes no sense."""
        text = self.prompt_template or self.checkpoint_template or DEFAULT_TEMPLATE
        return PromptTemplate.parse(text, self.label_key, self.truncation_field)


@dataclass(frozen=True)
class Sample:
    """One row: ids, and which of them are trained (``loss_mask[t]`` says it of ``tokens[t]``)."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    source: str
    is_filler: bool = False


class SftDataset:
    """The usable rows of some JSONL files, in file order."""

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
        self.template = settings.template()
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
        encoded = scanned.cache.get(row) or self._encode(scanned, [row])[0]
        return Sample(encoded.ids, encoded.loss_mask, scanned.file.where(row))

    @property
    def has_chat(self) -> bool:
        """True when a file holds conversations, which the chat template renders."""
        return any(scanned.schema.name == "messages" for scanned in self._files)

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
        file = JsonlFile(path)
        schema = choose_schema(file, self.template, self.settings.format)
        check_rows(file, schema)
        scanned = _Scanned(file, schema, weight, np.zeros(len(file), np.int32))
        report = scanned.report
        seen: set[int] = set()
        for rows in _batches(len(file)):
            for row, encoded in zip(rows, self._encode(scanned, rows), strict=True):
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

    def _encode(self, scanned: _Scanned, rows: Sequence[int]) -> list[Encoded]:
        settings = self.settings
        found = read_rows(scanned.file, scanned.schema, rows)
        prompts = [row.values for row in found if isinstance(row, PromptRow)]
        if prompts:
            rules = RowRules(
                max_seq_length=settings.max_seq_length,
                truncation_method=settings.truncation_method,
                add_bos=settings.add_bos,
                add_sep=settings.add_sep,
                add_eos=settings.add_eos,
                answer_only_loss=settings.mask != "none",
            )
            return encode_prompts(prompts, self.template, self.tokenizer, rules)
        chats = []
        for number, row in zip(rows, found, strict=True):
            assert isinstance(row, ChatRow), "a schema reads one kind of row"
            try:
                chats.append(render_row(row, self.tokenizer, settings.mask))
            except DataError as error:
                raise DataError(f"{scanned.file.where(number)}: {error}") from error
        rules = ChatRules(settings.max_seq_length, settings.mask, settings.add_eos)
        return encode_chats(chats, self.tokenizer, rules)


@dataclass
class _Scanned:
    """One file: where its rows are, what they are, and how long (0: not usable)."""

    file: JsonlFile
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
