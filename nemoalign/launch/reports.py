"""The last words of a rank: left in a file for the parent that started it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from nemoalign.errors import LostRankError, NemoAlignError

REPORTS = "NEMOALIGN_REPORTS"


@dataclass(frozen=True)
class Report:
    """The last words of a rank."""

    message: str
    exit_code: int
    kind: str = "RankFailure"
    detail: str = ""
    seconds: float = 0.0

    @property
    def misses_another(self) -> bool:
        """True of a rank that ended because another one went away."""
        return self.kind == LostRankError.__name__

    @property
    def is_echo(self) -> bool:
        """True where another rank may be the cause."""
        return self.misses_another or self.exit_code == 1


class RankFailure(NemoAlignError):
    """A rank ended with something other than 0; carries its words and its exit code."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.message)
        self.exit_code = report.exit_code
        self.kind = report.kind
        self.detail = report.detail


def report_failure(
    message: str, exit_code: int, kind: str, detail: str, environ: Mapping[str, str]
) -> bool:
    """Leave a rank's last words for the parent that started it; return False when there is none."""
    directory = environ.get(REPORTS)
    if directory is None:
        return False
    target = Path(directory) / f"rank{environ['RANK']}.json"
    words = Report(message, exit_code, kind, detail, time.time())
    with suppress(OSError):  # a parent that is gone has taken the directory along
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(words)))
        temporary.replace(target)
    return True


def has_words(directory: Path, rank: int) -> bool:
    """Return whether a rank left its last words."""
    return (directory / f"rank{rank}.json").exists()


def first_report(directory: Path) -> Report | None:
    """Return the words to believe: the first to be left.

    But a cause before what it does to the others: a named error before the bug it causes, and both before
    a rank that only misses another.
    """
    found = [Report(**json.loads(path.read_text())) for path in directory.glob("rank*.json")]
    return min(found, key=_distance, default=None)


def _distance(report: Report) -> tuple[bool, bool, float]:
    return report.misses_another, report.exit_code == 1, report.seconds
