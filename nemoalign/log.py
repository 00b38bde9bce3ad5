"""What a run says while it works: one small protocol, so that no room below ``cli`` knows a terminal.

``stdout`` carries results, ``stderr`` the talk. Only rank 0 speaks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

Segment = tuple[str, str]
"""What happens to a part of a text, and the part."""

TRAINED, MASKED, TRUNCATED = "trained", "masked", "truncated"
BRACKETS = {TRAINED: "⟦⟧", MASKED: ("", ""), TRUNCATED: "⟨⟩"}


class ProgressBar(Protocol):
    """One bar: ``total`` units of work, advanced as they are done."""

    def advance(self, amount: float, **fields: float | str) -> None:
        """Add ``amount`` units; ``fields`` (loss=..., lr=...) are shown beside the bar."""
        ...


class Reporter(Protocol):
    """The voice of one command: sentences, warnings, metrics and progress."""

    def say(self, text: str) -> None:
        """Print one line of talk."""
        ...

    def warn(self, text: str) -> None:
        """Print one warning; the work goes on."""
        ...

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        """Show one line of metrics (they are also written to ``metrics.jsonl`` by the loop)."""
        ...

    def sample(self, segments: Sequence[Segment]) -> None:
        """Show the text of one row of data in parts that are learned, only read, or cut away."""
        ...

    def progress(
        self, title: str, total: float, unit: str, done: float = 0
    ) -> AbstractContextManager[ProgressBar]:
        """Open a progress bar as a context manager; ``unit`` is ``bytes``, ``steps`` or ``rows``.

        ``done`` of them were done before, by a run that is continued.
        """
        ...


class _SilentBar:
    def advance(self, amount: float, **fields: float | str) -> None:
        """Count nothing."""


class PlainReporter:
    """Plain lines on stderr, for pipes, logs and Python callers; no bars."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print one line of talk."""
        if not self.quiet:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def warn(self, text: str) -> None:
        """Print one warning, also when quiet."""
        sys.stderr.write(f"warning: {text}\n")
        sys.stderr.flush()

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        """Print metrics as ``name=value`` pairs."""
        self.say(" ".join(f"{name}={_short(value)}" for name, value in values.items()))

    def sample(self, segments: Sequence[Segment]) -> None:
        """Print a text with brackets around what is learned and what is cut away."""
        self.say(bracketed(segments))

    @contextmanager
    def progress(
        self, title: str, total: float, unit: str, done: float = 0
    ) -> Iterator[ProgressBar]:
        """Show nothing while the work advances."""
        del title, total, unit, done
        yield _SilentBar()


def bracketed(segments: Sequence[Segment]) -> str:
    """Return the parts of a text as one, each kind between its brackets."""
    marked = [(*BRACKETS[kind], text) for kind, text in segments]
    return "".join(f"{opened}{text}{closed}" for opened, closed, text in marked)


def _short(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def speaking_rank() -> bool:
    """True on rank 0 and in a process that is no rank at all."""
    return int(os.environ.get("RANK", "0")) == 0
