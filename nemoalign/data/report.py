"""What a run says about its data before it trains on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nemoalign.data.encoded import EncodedFile


@dataclass(frozen=True)
class FileReport:
    """Counts of one file; ``tokens`` and what follows count usable rows only.

    Of a large file they are estimates from ``sampled`` rows, and nobody looked for duplicates.
    """

    path: str
    schema: str
    blank_lines: int = 0
    weight: float = 1.0
    rows: int = 0
    dropped: int = 0
    truncated: int = 0
    duplicates: int = 0
    longest: int = 0
    median: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lengths: tuple[tuple[int, int], ...] = ()
    """Pairs of a length, each twice the one before, and the rows up to it and above that."""
    marked: int = 0
    """Rows whose text holds what its template writes."""
    marked_first: str | None = None
    unwritten: int = 0
    """Rows with tools or calls of them that the chat template never writes."""
    unwritten_first: str | None = None
    sampled: int | None = None

    @classmethod
    def of(cls, file: EncodedFile, weight: float) -> FileReport:
        """Return what is known of a file."""
        found, length = file.found, file.lengths
        usable = found["trained"] > 0
        rows = len(file.file)
        share = rows / max(1, len(usable))

        def total(values: np.ndarray) -> int:
            return round(int(values.sum()) * share)

        return cls(
            path=str(file.file.path),
            schema=file.schema.name,
            blank_lines=file.file.blank_lines,
            weight=weight,
            rows=rows,
            dropped=total(~usable),
            truncated=total(found["truncated"]),
            duplicates=0 if file.is_large else rows - len(np.unique(found["digests"])),
            longest=int(length[usable].max(initial=0)),
            median=int(np.median(length[usable])) if usable.any() else 0,
            lengths=tuple((upto, round(n * share)) for upto, n in _histogram(length[usable])),
            marked=total(found["marked"]),
            marked_first=file.first_mark(),
            unwritten=total(found["unwritten"]),
            unwritten_first=file.first_unwritten(),
            tokens=total(length[usable]),
            trained_tokens=total(found["trained"]),
            sampled=len(usable) if file.is_large else None,
        )

    def line(self, max_seq_length: int) -> str:
        """Return the counts as one sentence."""
        parts = [f"{self.path}: {self.rows:,} rows ({self.schema})"]
        if self.weight != 1:
            parts.append(f"each used {self.weight:g} times an epoch")
        if self.truncated:
            parts.append(f"{self.truncated:,} cut to {max_seq_length:,} tokens")
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped (no answer token left)")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} duplicates")
        if self.blank_lines:
            parts.append(f"{self.blank_lines:,} empty lines skipped")
        if self.tokens:
            share = self.trained_tokens / self.tokens
            parts.append(f"{self.tokens:,} tokens, {self.trained_tokens:,} trained ({share:.0%})")
            parts.append(f"longest {self.longest:,}, median {self.median:,}")
        if self.sampled is not None:
            parts.append(f"estimated from {self.sampled:,} rows")
        return ", ".join(parts)

    def problems(self) -> Iterator[str]:
        """Yield what is odd about the rows, a sentence each."""
        if self.marked:
            yield (
                f"{self.path} has {self.marked:,} rows whose text holds what its template writes, such "
                f"as {self.marked_first}; the model would see it twice. Give rows without a template's "
                "marks."
            )
        if self.unwritten:
            yield (
                f"{self.path} has {self.unwritten:,} rows with fields (the first is {self.unwritten_first}) that the "
                "chat template does not write, so the model would not see them. Embed a tokenizer whose "
                "template does: nemoalign convert MODEL -o NEW.nemo --tokenizer HF_DIR"
            )


def _histogram(lengths: np.ndarray) -> list[tuple[int, int]]:
    if not len(lengths):
        return []
    steps = np.maximum(np.ceil(np.log2(np.maximum(lengths, 1))).astype(int), 4)
    return [(2**step, int((steps == step).sum())) for step in range(steps.min(), steps.max() + 1)]


@dataclass(frozen=True)
class DataReport:
    """The files of one split; sums over them have the same names."""

    split: str
    max_seq_length: int
    files: tuple[FileReport, ...]
    repeated: int = 0
    """Different rows of a file that an earlier file has too."""
    not_kept: str | None = None
    """Why the index could not be kept for the next start, if it could not."""

    @property
    def rows(self) -> int:
        """Rows read, usable or not."""
        return sum(file.rows for file in self.files)

    @property
    def dropped(self) -> int:
        """Rows without a trained token."""
        return sum(file.dropped for file in self.files)

    @property
    def truncated(self) -> int:
        """Rows that were longer than the sequence length."""
        return sum(file.truncated for file in self.files)

    @property
    def duplicates(self) -> int:
        """Rows whose ids another row of the same file has too."""
        return sum(file.duplicates for file in self.files)

    @property
    def blank_lines(self) -> int:
        """Lines of nothing but white space."""
        return sum(file.blank_lines for file in self.files)

    @property
    def longest(self) -> int:
        """Tokens of the longest usable row."""
        return max((file.longest for file in self.files), default=0)

    @property
    def tokens(self) -> int:
        """Tokens of all usable rows."""
        return sum(file.tokens for file in self.files)

    @property
    def trained_tokens(self) -> int:
        """Tokens of all usable rows that count in the loss."""
        return sum(file.trained_tokens for file in self.files)

    def lines(self) -> list[str]:
        """Return one sentence per file."""
        return [f"{self.split} data {file.line(self.max_seq_length)}" for file in self.files]

    def problems(self) -> list[str]:
        """Return what is odd, a sentence each."""
        found = [problem for file in self.files for problem in file.problems()]
        if self.repeated:
            found.append(
                f"{self.repeated:,} rows of the {self.split} data are in more than one of its files."
            )
        if self.not_kept is not None:
            found.append(
                f"What was found in the data cannot be kept for the next start ({self.not_kept}). Name "
                "a directory for it: -s model.data.train_ds.index_mapping_dir=DIR"
            )
        return found
