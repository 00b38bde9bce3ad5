"""What a run says about its data before it trains on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FileReport:
    """Counts of one file; ``tokens`` and what follows count usable rows only."""

    path: str
    schema: str
    blank_lines: int = 0
    weight: float = 1.0
    rows: int = 0
    dropped: int = 0
    truncated: int = 0
    duplicates: int = 0
    longest: int = 0
    tokens: int = 0
    trained_tokens: int = 0

    def count(self, length: int, trained: int, truncated: bool) -> None:
        """Add one row of ``length`` input tokens; without a trained token it is dropped."""
        self.rows += 1
        self.truncated += truncated
        if not trained:
            self.dropped += 1
            return
        self.longest = max(self.longest, length)
        self.tokens += length
        self.trained_tokens += trained

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
            parts.append(f"longest {self.longest:,}")
        return ", ".join(parts)


@dataclass(frozen=True)
class DataReport:
    """The files of one split; sums over them have the same names."""

    split: str
    max_seq_length: int
    files: tuple[FileReport, ...]

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
