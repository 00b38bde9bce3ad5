"""What is known of all of a run's data before it trains: sentences, and ``data_report.json``.

The document has ``splits``, one for train, validation and test: ``split``, ``max_seq_length`` and ``files``,
each with the fields of ``FileReport`` (``path``, ``schema``, ``rows``, ``blank_lines``, ``weight``,
``dropped`` and of these ``too_long`` and ``alike``, ``truncated``, ``duplicates``, ``longest``, ``median``,
``tokens``, ``trained_tokens``, ``lengths`` as pairs of a length and the rows up to it and above the one
before, ``marked`` with ``marked_first``, ``unwritten`` with ``unwritten_first``, ``sampled`` or null, and
``judged`` or null, of labelled rows ``desirable`` and ``undesirable``, of pairs ``pairs``,
``chosen_tokens``, ``rejected_tokens`` and ``chosen_longer``), ``repeated``, rows of a file that an earlier
file of the split has too, and ``unbalanced`` or null; ``overlaps``, each with ``split``, ``rows``, ``of`` and ``first``, a pair of places; and ``problems``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nemoalign.data.report import DataReport

if TYPE_CHECKING:
    from nemoalign.data.dataset import SftDataset
    from nemoalign.data.encoded import EncodedFile


@dataclass(frozen=True)
class Overlap:
    """Rows that are measured on and learned from, id for id."""

    split: str
    rows: int
    of: int
    first: tuple[str, str]
    """Where the first of them stands, here and in the training data."""

    def problem(self) -> str:
        """Return it as a sentence."""
        here, there = self.first
        return (
            f"{self.rows:,} of {self.of:,} rows of the {self.split} data are training rows too, so its "
            f"loss says less than it seems to; the first is {here}, which is {there}."
        )


@dataclass(frozen=True)
class Findings:
    """The reports of every split, and what they have in common."""

    reports: tuple[DataReport, ...]
    overlaps: tuple[Overlap, ...]

    @classmethod
    def of(cls, train: SftDataset | None, *measured: SftDataset | None) -> Findings:
        """Return what is known of the data of a run."""
        others = [rows for rows in measured if rows is not None]
        both = [find_overlap(train, rows) for rows in others] if train is not None else []
        splits = others if train is None else [train, *others]
        return cls(tuple(rows.report() for rows in splits), tuple(one for one in both if one))

    def lines(self) -> list[str]:
        """Return a sentence per file."""
        return [line for report in self.reports for line in report.lines()]

    def problems(self) -> list[str]:
        """Return what is odd, a sentence each."""
        found = [line for report in self.reports for line in report.problems()]
        return list(dict.fromkeys([*found, *(overlap.problem() for overlap in self.overlaps)]))

    def document(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        return {
            "splits": [asdict(report) for report in self.reports],
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
            "problems": self.problems(),
        }


def find_overlap(train: SftDataset, measured: SftDataset) -> Overlap | None:
    """Return what two splits share; of large files only the rows read ahead are compared."""
    learned = np.concatenate([_digests(file) for file in train.files])
    shared = [np.isin(_digests(file), learned) for file in measured.files]
    rows = int(sum(part.sum() for part in shared))
    if not rows:
        return None
    file, part = next(
        (file, part) for file, part in zip(measured.files, shared, strict=True) if part.any()
    )
    first = int(np.argmax(part))
    digest = _digests(file)[first]
    return Overlap(
        measured.split,
        rows,
        sum(len(part) for part in shared),
        (_place(file, first), next(_where(train.files, digest))),
    )


def _where(files: Sequence[EncodedFile], digest: np.uint64) -> Iterator[str]:
    for file in files:
        for number in np.flatnonzero(_digests(file) == digest):
            yield _place(file, int(number))


def _digests(file: EncodedFile) -> np.ndarray:
    """Return what stands for the ids of the rows read ahead that have a token to learn."""
    return file.found["digests"][file.found["trained"] > 0]


def _place(file: EncodedFile, number: int) -> str:
    usable = np.flatnonzero(file.found["trained"] > 0)
    return file.file.where(int(file.ahead[usable[number]]))
