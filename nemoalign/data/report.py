"""What a run says about its data before it trains on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nemoalign.data.balance import Counts, PairCounts

_MANY = 0.05
"""From this share on rows that are lost are worth another sentence."""

if TYPE_CHECKING:
    from nemoalign.data.encoded import EncodedFile


@dataclass(frozen=True)
class FileReport:
    """Counts of one file; ``tokens`` and what follows count usable rows only.

    Of a large file they are estimates from ``sampled`` rows, and nobody looked for duplicates. A pair is
    one row; its answers are the lengths and tokens that are counted.
    """

    path: str
    schema: str
    blank_lines: int = 0
    weight: float = 1.0
    rows: int = 0
    dropped: int = 0
    too_long: int = 0
    """Of the dropped rows, those that ``overlong`` drops."""
    alike: int = 0
    """Of the dropped pairs, those whose answers are the same, or became it when they were cut."""
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
    judged: Counts | None = None
    """What is known of answers that are judged."""
    sampled: int | None = None

    @classmethod
    def of(cls, file: EncodedFile, weight: float, answers: int = 1) -> FileReport:
        """Return what is known of a file whose rows have so many answers each."""
        found, rows = file.found, len(file.file) // answers
        usable = usable_rows(file, answers)
        length = file.lengths.reshape(-1, answers)[usable]
        share = rows / max(1, len(usable))

        def total(values: np.ndarray) -> int:
            return round(int(values.sum()) * share)

        def rows_with(name: str) -> np.ndarray:
            return found[name].reshape(-1, answers).max(1)

        digests = found["digests"].reshape(-1, answers)
        unlearned = (found["trained"].reshape(-1, answers) == 0).any(1)
        return cls(
            path=str(file.file.path),
            schema=file.schema.name,
            blank_lines=file.file.blank_lines,
            weight=weight,
            rows=rows,
            dropped=total(~usable),
            too_long=total(rows_with("too_long")),
            alike=total(~usable & ~unlearned),
            truncated=total(rows_with("truncated")),
            duplicates=0 if file.is_large else rows - len(np.unique(digests, axis=0)),
            longest=int(length.max(initial=0)),
            median=int(np.median(length)) if usable.any() else 0,
            lengths=tuple((upto, round(n * share)) for upto, n in _histogram(length.ravel())),
            marked=total(rows_with("marked")),
            marked_first=file.first_mark(),
            unwritten=total(rows_with("unwritten")),
            unwritten_first=file.first_unwritten(),
            tokens=total(length),
            trained_tokens=total(found["trained"].reshape(-1, answers)[usable]),
            sampled=len(usable) if file.is_large else None,
        )

    @property
    def unanswered(self) -> int:
        """Rows that are dropped since no token to learn is left of an answer."""
        return self.dropped - self.too_long - self.alike

    def line(self, max_seq_length: int) -> str:
        """Return the counts as one sentence."""
        parts = [f"{self.path}: {_counted(self.rows, 'row')} ({self.schema})"]
        if self.weight != 1:
            parts.append(f"each used {self.weight:g} times an epoch")
        found = (
            (self.truncated, f"cut to {max_seq_length:,} tokens"),
            (self.too_long, f"dropped (longer than {max_seq_length:,} tokens)"),
            (self.alike, "dropped (both answers the same, as far as they fit)"),
            (self.unanswered, "dropped (no answer token left)"),
        )
        parts += [f"{count:,} {what}" for count, what in found if count]
        parts += [_counted(self.duplicates, "duplicate")] * (self.duplicates > 0)
        parts += [f"{_counted(self.blank_lines, 'empty line')} skipped"] * (self.blank_lines > 0)
        if self.tokens:
            share = self.trained_tokens / self.tokens
            parts.append(f"{self.tokens:,} tokens, {self.trained_tokens:,} trained ({share:.0%})")
            parts.append(f"longest {self.longest:,}, median {self.median:,}")
        if self.judged is not None:
            parts.append(self.judged.line())
        if self.sampled is not None:
            parts.append(f"estimated from {self.sampled:,} rows")
        return ", ".join(parts)

    def problems(self) -> Iterator[str]:
        """Yield what is odd about the rows, a sentence each."""
        if isinstance(self.judged, PairCounts) and (odd := self.judged.problem(self.path)):
            yield odd
        if self.judged is not None and self.unanswered > _MANY * self.rows:
            yield (
                f"{self.unanswered:,} of {self.rows:,} rows of {self.path} are dropped because their prompts "
                "alone fill --seq-len. Raise it, or cut the prompts' start and keep the answers: "
                "-s model.data.train_ds.truncation_method=left"
            )
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


def usable_rows(file: EncodedFile, answers: int) -> np.ndarray:
    """Return which of the rows read ahead are trained: every answer has a token to learn, none is another."""
    usable = (file.found["trained"].reshape(-1, answers) > 0).all(1)
    digests = np.sort(file.found["digests"].reshape(-1, answers), axis=1)
    return usable & (digests[:, 1:] != digests[:, :-1]).all(1)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


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
    unbalanced: str | None = None
    """Why the weights of labels do not fit how often each occurs, if they do not."""
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
                f"{_counted(self.repeated, 'row')} of the {self.split} data "
                f"{'is' if self.repeated == 1 else 'are'} in more than one of its files."
            )
        if self.unbalanced is not None:
            found.append(self.unbalanced)
        if self.not_kept is not None:
            found.append(
                f"What was found in the data cannot be kept for the next start ({self.not_kept}). Name "
                "a directory for it: -s model.data.train_ds.index_mapping_dir=DIR"
            )
        return found
