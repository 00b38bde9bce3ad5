"""Rows that reward models learn from: pairs, answers with scores, and two lines that belong together.

An answer is judged when all of it was read, so its last id is an input here, where other rows only
predict it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.data.dataset import Sample
from nemoalign.data.encoded import EncodedFile
from nemoalign.data.feedback import HELPSTEER, ScoreRow, dialogue_of, has_scores, score_row
from nemoalign.data.formats import RowFile, Schema
from nemoalign.data.judged import DIALOGUE, Judged, JudgedDataset, JudgedFile, PairDataset
from nemoalign.data.preferences import PairRow, pair_reader
from nemoalign.data.rows import Dialogue, Record, listed, text_of
from nemoalign.errors import DataError

LENGTH, MARGIN, STRENGTH = "length", "margin", "strength"
Known = tuple[Dialogue, Mapping[str, float]]
"""An answer and what is known of it."""


def label_name(number: int) -> str:
    """Return what the field of one attribute's labels is called."""
    return f"label_{number}"


class RewardDataset(JudgedDataset):
    """Answers that are read to their last token."""

    attributes: tuple[str, ...] = ()
    """What the labels of a row are about."""

    def __init__(self, files: Any, tokenizer: Any, settings: Any, *others: Any) -> None:
        # Every id is an input, so one less fits than where the last one is only predicted.
        shorter = replace(settings, max_seq_length=settings.max_seq_length - 1)
        super().__init__(files, tokenizer, shorter, *others)

    def sample(self, index: int) -> Judged:
        """Return one row with the number of tokens of each of its answers."""
        judged = super().sample(index)
        documents = tuple(self._whole(document) for document in judged.documents)
        lengths = tuple(float(len(document.tokens) - 1) for document in documents)
        return Judged(documents, {**judged.fields, LENGTH: lengths})

    def length(self, index: int) -> int:
        """Return the number of tokens a row feeds to the model, all answers together."""
        return super().length(index) + self.answers

    def _lengths(self, file: EncodedFile, rows: np.ndarray) -> np.ndarray:
        return super()._lengths(file, rows) + self.answers

    def _whole(self, document: Sample) -> Sample:
        """Return an answer with one more id, so that its own last one is an input."""
        tokens = np.append(document.tokens, np.int32(self.tokenizer.eos_id))
        return replace(document, tokens=tokens, loss_mask=np.append(document.loss_mask, False))

    def _numbers(self) -> Sequence[object]:
        """Return which numbers are known of an answer, and what decides them beside the file."""
        return (*self.names, getattr(self, "missing", None))

    def _in_twos(self, file: RowFile, read: Callable[[Record], Known]) -> RowFile:
        """Return the lines of a file as answers of which each two are one row."""
        if len(file) % 2:
            raise DataError(
                f"{file.path} has {len(file)} rows, but two after each other are a pair: one is "
                "missing or too many."
            )
        return JudgedFile(file, 1, lambda record: [read(record)], self._numbers())


class RankedDataset(RewardDataset, PairDataset):
    """Pairs, with the margin a row gives; NeMo-Aligner's lines of text, the better one first, too."""

    names = (MARGIN,)

    def _open(self, path: Path) -> tuple[RowFile, Schema]:
        file = self._rows_of(path)
        first = file.record(0)
        if pair_reader(first) is None and "text" in first and not has_scores(first):
            return self._in_twos(file, _plain_text), _schema("two lines a pair")
        if has_scores(first):
            raise DataError(
                f"{file.where(0)} has scores of one answer, not a pair. Learn the scores: "
                "--reward-type regression"
            )
        return super()._open(path)

    def _sides(self, pair: PairRow) -> Sequence[Known]:
        known = {MARGIN: pair.margin or 0.0}
        return (pair.chosen, known), (pair.rejected, known)


class ScoreDataset(RewardDataset):
    """Answers with a score for each of some attributes; ``missing`` stands for one that was not given."""

    def __init__(self, *arguments: Any, missing: float) -> None:
        self.missing = missing
        super().__init__(*arguments)

    def _open(self, path: Path) -> tuple[RowFile, Schema]:
        file = self._rows_of(path)
        first = file.record(0)
        if not has_scores(first):
            raise DataError(
                f"{file.where(0)} has {listed(first)}, which is no answer with scores. Known are "
                f'"text" and a list as "label", or "prompt", "response" and {listed(HELPSTEER)}.'
                + (" Learn from pairs: --reward-type binary_ranking" if pair_reader(first) else "")
            )
        try:
            count = len(score_row(first, self.missing).scores)
        except DataError as error:
            raise DataError(f"{file.where(0)} {error}") from error
        by_name = "label" not in first
        self._agree(HELPSTEER if by_name else tuple(str(n + 1) for n in range(count)), file)
        each = JudgedFile(file, 1, lambda record: [self._scored(record)], self._numbers())
        return each, _schema("scored answers")

    def _agree(self, attributes: tuple[str, ...], file: RowFile) -> None:
        if self.attributes and len(self.attributes) != len(attributes):
            raise DataError(
                f"{file.path} has {len(attributes)} scores a row, an earlier file "
                f"{len(self.attributes)}. Give files of the same attributes."
            )
        self.attributes = attributes
        self.names = tuple(label_name(number) for number in range(len(attributes)))

    def _scored(self, record: Record) -> Known:
        row: ScoreRow = score_row(record, self.missing)
        if len(row.scores) != len(self.attributes):
            raise DataError(
                f"has {len(row.scores)} scores, where the first row has {len(self.attributes)}."
            )
        scores = (self.missing if score is None else score for score in row.scores)
        return row.dialogue, dict(zip(self.names, scores, strict=True))


class GradedDataset(RewardDataset):
    """Two answers and how much better the second is: a label of the first of two lines, or of a pair."""

    answers = 2
    names = (STRENGTH,)

    def __init__(self, *arguments: Any, missing: float) -> None:
        self.missing = missing
        super().__init__(*arguments)

    def _open(self, path: Path) -> tuple[RowFile, Schema]:
        file = self._rows_of(path)
        reader = pair_reader(file.record(0))
        if reader is not None:
            both = JudgedFile(file, 2, lambda r: _graded(reader(r)), self._numbers())
            return both, _schema("graded pairs")
        return self._in_twos(file, self._line), _schema("two lines a graded pair")

    def _line(self, record: Record) -> Known:
        row = score_row(record, self.missing)
        strength = row.scores[0]
        if strength is None:
            raise DataError("has no first label, which says how much better the second answer is.")
        return row.dialogue, {STRENGTH: strength}


class AnswerDataset(RewardDataset):
    """Answers to be scored, whatever else their rows say: every one of a file, in its order."""

    def _open(self, path: Path) -> tuple[RowFile, Schema]:
        file = self._rows_of(path)
        try:
            pairs = pair_reader(file.record(0))
        except DataError as error:
            raise DataError(f"{file.where(0)} {error}") from error
        if pairs is None:
            return JudgedFile(file, 1, lambda r: [(_answer(r), {})], ()), _schema("answers")
        both = JudgedFile(file, 2, lambda r: [(side, {}) for side in _two(pairs(r))], ())
        return both, _schema("answers of pairs")

    def side(self, index: int) -> str | None:
        """Return which answer of its pair a row is; None for one that is alone."""
        file, row = self._at(index)
        alone = not isinstance(file.file, JudgedFile) or file.file.answers == 1
        return None if alone else ("chosen", "rejected")[row % 2]

    def path(self, index: int) -> Path:
        """Return the file an answer is from."""
        return self._at(index)[0].file.path

    def number(self, index: int) -> int:
        """Return the number of an answer's row in its file, from 1."""
        file, row = self._at(index)
        assert isinstance(file.file, JudgedFile), "_open makes them"
        return row // file.file.answers + 1

    def is_cut(self, index: int) -> bool:
        """True for an answer that was too long to be read whole."""
        file, row = self._at(index)
        return file.encoded(row).truncated

    def _usable(self, file: EncodedFile) -> np.ndarray:
        return np.arange(len(file.file))


def reward_rows(settings: Any) -> Callable[..., RewardDataset]:
    """Return what reads the rows that reward models of these settings learn from."""
    if settings.reward_model_type == "binary_ranking":
        return RankedDataset
    graded = settings.loss_func != "regression"
    return partial(GradedDataset if graded else ScoreDataset, missing=settings.loss_mask_val)


def _graded(pair: PairRow) -> Sequence[Known]:
    known = {STRENGTH: -(1.0 if pair.margin is None else pair.margin)}
    return (pair.chosen, known), (pair.rejected, known)


def _plain_text(record: Record) -> Known:
    """Read a text as it stands, its prompt in it."""
    return Dialogue("", text_of(record, "text")), {MARGIN: 0.0}


def _answer(record: Record) -> Dialogue:
    alone = "text" in record and "messages" not in record
    return Dialogue("", text_of(record, "text")) if alone else dialogue_of(record)


def _two(pair: PairRow) -> tuple[Dialogue, Dialogue]:
    return pair.chosen, pair.rejected


def _schema(name: str) -> Schema:
    return Schema(name, lambda record: DIALOGUE in record, lambda record: record[DIALOGUE])
