"""Rows whose answers are judged: pairs of a better and a worse one, and single ones with a label.

Every answer is a row of its own to the index, tokenized with its prompt; what a run takes is one or two of
them with what the file says of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.data.balance import LabelCounts, PairCounts, weights_problem
from nemoalign.data.dataset import Sample, SftDataset
from nemoalign.data.encoded import EncodedFile
from nemoalign.data.feedback import has_label, label_row, unpaired
from nemoalign.data.formats import RowFile, Schema
from nemoalign.data.preferences import PairRow, pair_reader
from nemoalign.data.report import DataReport, FileReport, usable_rows
from nemoalign.data.rows import Dialogue, Record, listed
from nemoalign.data.sampler import MISSING_ROW
from nemoalign.data.templates import Encoded, cut_left, cut_right
from nemoalign.errors import DataError

DIALOGUE = "dialogue"
KTO = " Single answers with a label are for nemoalign kto."


@dataclass(frozen=True)
class Judged:
    """Answers of one row, the better of a pair first, and numbers about each of them."""

    documents: tuple[Sample, ...]
    fields: Mapping[str, tuple[float, ...]]
    mismatched: Sample | None = None
    """The prompt with another row's answer; one that trains nothing where there is no other."""


class JudgedFile:
    """Every answer of a file as a row of its own, ``answers`` of them for each row of the file."""

    together = 2
    """Answers that may be a pair, and are not parted when some stand for all."""

    def __init__(
        self,
        file: RowFile,
        answers: int,
        read: Callable[[Record], Sequence[Any]],
        numbers: Sequence[object],
    ) -> None:
        self.file, self.answers, self._read, self.numbers = file, answers, read, numbers
        self.path, self.blank_lines, self.size_bytes = file.path, file.blank_lines, file.size_bytes

    def __len__(self) -> int:
        return len(self.file) * self.answers

    def where(self, row: int) -> str:
        """Return how to find the row an answer comes from."""
        return self.file.where(row // self.answers)

    def record(self, row: int) -> dict[str, Any]:
        """Return one answer with its prompt, and the answers beside it."""
        number = row % self.answers
        try:
            judged = self._read(self.file.record(row // self.answers))
        except DataError as error:
            raise DataError(f"{self.where(row)} {error}") from error
        beside = tuple(dialogue for dialogue, _ in judged)
        return {DIALOGUE: replace(judged[number][0], beside=beside[:number] + beside[number + 1 :])}

    def known(self, row: int) -> Mapping[str, float]:
        """Return the numbers an answer comes with; raises DataError without the place."""
        return self._read(self.file.record(row // self.answers))[row % self.answers][1]


class JudgedDataset(SftDataset):
    """What pairs and labelled answers share: fillers, and samples with their numbers."""

    names: tuple[str, ...] = ()
    """What is known of every answer beside its text."""

    def _documents(self, index: int) -> tuple[EncodedFile, list[int]]:
        file, unit = self._at(index)
        return file, [unit * self.answers + number for number in range(self.answers)]

    def sample(self, index: int) -> Judged:
        """Return one row, as often as it has answers; the missing row trains nothing."""
        if index == MISSING_ROW:
            zeros = (0.0,) * self.answers
            documents = tuple(super(JudgedDataset, self).__getitem__(index) for _ in zeros)
            return Judged(documents, dict.fromkeys((*self.names, "weight"), zeros), documents[0])
        file, rows = self._documents(index)
        encoded = [file.encoded(row) for row in rows]
        known = [file.known(row) for row in rows]
        fields = {name: tuple(float(one[name]) for one in known) for name in self.names}
        # Of a large file nobody knew before which rows are to be left out.
        weight = float(all(one.loss_mask[1:].any() for one in encoded))
        if any(np.array_equal(encoded[0].ids, one.ids) for one in encoded[1:]):
            file.empty.add(rows[0])
            weight = 0.0
        return Judged(
            tuple(Sample(one.ids, one.loss_mask, self.place(index)) for one in encoded),
            {**fields, "weight": (weight,) * self.answers},
        )

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)

    def encoded_anew(self, index: int) -> list[Encoded]:
        """Return the answers of one row with what was cut away from them."""
        file, rows = self._documents(index)
        return [file.encoded_anew(row) for row in rows]

    def length(self, index: int) -> int:
        """Return the number of tokens a row feeds to the model, all answers together."""
        file, rows = self._documents(index)
        return sum(file.length(row) for row in rows)

    def place(self, index: int) -> str:
        """Return file and line of a row."""
        file, rows = self._documents(index)
        return file.file.where(rows[0])

    def _usable(self, file: EncodedFile) -> np.ndarray:
        usable = usable_rows(file, self.answers)
        if file.is_large:
            return np.arange(len(file.file) // self.answers if usable.any() else 0)
        return np.flatnonzero(usable)

    def _lengths(self, file: EncodedFile, rows: np.ndarray) -> np.ndarray:
        return file.lengths.reshape(-1, self.answers).sum(1)[rows]


class PairDataset(JudgedDataset):
    """A better and a worse answer to the same prompt; rewards where RPO asks for them."""

    answers = 2
    names = ("reward",)

    def what(self, index: int, place: int) -> str:
        """Return which answer of a pair it is."""
        del index
        return ("chosen", "rejected")[place]

    def _open(self, path: Path) -> tuple[RowFile, Schema]:
        file = self._rows_of(path)
        reader = pair_reader(file.record(0))
        if reader is None:
            raise DataError(
                f"{file.where(0)} has {listed(file.record(0))}, which is no preference pair. Known are "
                '"prompt", "chosen" and "rejected", "chosen_response" and "rejected_response", two whole '
                "conversations, and others that the README lists."
                f"{KTO if has_label(file.record(0)) else ''}"
            )

        def read(record: Record) -> Sequence[tuple[Dialogue, Mapping[str, float]]]:
            return self._sides(reader(record))

        numbers = (*self.names, *self.settings.judged.default_rewards)
        return JudgedFile(file, 2, read, numbers), _schema("pairs")

    def _file_report(self, file: EncodedFile, weight: float) -> FileReport:
        report = super()._file_report(file, weight)
        usable = usable_rows(file, 2)
        trained = file.found["trained"].reshape(-1, 2)[usable]
        share = report.rows / max(1, len(usable))
        return replace(report, judged=PairCounts.of(trained, share))

    def _sides(self, pair: PairRow) -> Sequence[tuple[Dialogue, Mapping[str, float]]]:
        better, worse = self.settings.judged.default_rewards
        chosen = better if pair.chosen_reward is None else pair.chosen_reward
        rejected = worse if pair.rejected_reward is None else pair.rejected_reward
        return (pair.chosen, {"reward": chosen}), (pair.rejected, {"reward": rejected})


class LabelDataset(JudgedDataset):
    """Single answers that are wanted or not; a file of pairs gives two of each pair."""

    names = ("is_desirable",)

    def what(self, index: int, place: int) -> str:
        """Return whether an answer is wanted."""
        return "desirable" if self.sample(index).fields["is_desirable"][place] else "undesirable"

    def _open(self, path: Path) -> tuple[RowFile, Schema]:
        file = self._rows_of(path)
        first = file.record(0)
        pairs = pair_reader(first)
        if pairs is not None:
            both = JudgedFile(file, 2, lambda r: _labelled(unpaired(pairs(r))), self.names)
            return both, _schema("labelled pairs")
        if not has_label(first):
            raise DataError(
                f"{file.where(0)} has {listed(first)}, which is no answer with a label. Known are "
                '"prompt", "completion" and "label", "prompt", "response" and "preference", '
                '"messages" and "label", or preference pairs.'
            )
        each = JudgedFile(file, 1, lambda r: _labelled([label_row(r)]), self.names)
        return each, _schema("labelled answers")

    def report(self) -> DataReport:
        """Return what was found in the files, and whether the labels' weights fit it."""
        report, weights = super().report(), self.settings.judged.label_weights
        if weights is None:
            return report
        counts = [(f.judged, f.weight) for f in report.files if isinstance(f.judged, LabelCounts)]
        wanted = sum(count.desirable * times for count, times in counts)
        unwanted = sum(count.undesirable * times for count, times in counts)
        return replace(report, unbalanced=weights_problem(wanted, unwanted, weights))

    def _file_report(self, file: EncodedFile, weight: float) -> FileReport:
        report = super()._file_report(file, weight)
        labels = file.found["known_is_desirable"] > 0
        share = report.rows / max(1, len(labels))
        return replace(report, judged=LabelCounts.of(labels[usable_rows(file, 1)], share))

    def of_batch(self, batch: Sequence[int] | np.ndarray) -> Callable[[int], Judged]:
        """Return how to read the rows of a global batch, each with a mismatched answer of another.

        A row's partner is the next one of the batch that asks something else (NeMo-Aligner takes the
        next one whatever it asks).
        """
        rows = [int(index) for index in batch if index != MISSING_ROW]
        prompts = [_parts(self.sample(index).documents[0])[0] for index in rows]
        same = _end_alike if self.settings.truncation_method == "left" else np.array_equal
        partners: dict[int, int] = {}
        for place, index in enumerate(rows):
            for distance in range(1, len(rows)):
                other = (place + self.settings.judged.partner_step * distance) % len(rows)
                if not same(prompts[other], prompts[place]):
                    partners[index] = rows[other]
                    break

        def read(index: int) -> Judged:
            sample = self.sample(index)
            return replace(sample, mismatched=self._mismatched(sample, partners.get(index)))

        return read

    def _mismatched(self, sample: Judged, partner: int | None) -> Sample:
        if partner is None:
            return self.sample(MISSING_ROW).documents[0]
        prompt, _ = _parts(sample.documents[0])
        other = self.sample(partner).documents[0]
        limit = self.settings.max_seq_length + 1
        tokens = np.concatenate([prompt, _parts(other)[1]])
        mask = np.concatenate([np.zeros(len(prompt), bool), other.loss_mask[-_tail(other) :]])
        cut = cut_right(tokens, mask, limit)
        if self.settings.truncation_method == "left":
            cut = cut_left(tokens, mask, len(tokens) - limit)
        return Sample(cut.ids, cut.loss_mask, sample.documents[0].source)


def _labelled(rows: Sequence[Any]) -> Sequence[tuple[Dialogue, Mapping[str, float]]]:
    return [(row.dialogue, {"is_desirable": float(row.is_desirable)}) for row in rows]


def _end_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """True where one prompt may be the other, of which more of the start was cut."""
    shorter = min(len(one), len(other))
    return bool(np.array_equal(one[len(one) - shorter :], other[len(other) - shorter :]))


def _tail(document: Sample) -> int:
    """Return how many ids the answer has, from its first learned one on."""
    return len(document.tokens) - int(document.loss_mask.argmax())


def _parts(document: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of prompt and answer."""
    start = len(document.tokens) - _tail(document)
    return document.tokens[:start], document.tokens[start:]


def _schema(name: str) -> Schema:
    return Schema(name, lambda record: DIALOGUE in record, lambda record: record[DIALOGUE])
