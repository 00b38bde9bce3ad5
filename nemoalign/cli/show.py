"""One voice: results on stdout, talk on stderr, bars on a terminal and plain lines elsewhere.

The only importer of rich, and only where it draws something: an error is said without it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import typer

from nemoalign.log import MASKED, TRAINED, TRUNCATED, PlainReporter, bracketed, speaking_rank

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.log import ProgressBar, Reporter, Segment

BAR_WIDTH, BAR_FROM = 12, 100
"""A terminal of fewer columns shows what a step reports instead of a bar."""

SEGMENT_STYLES = {TRAINED: "green", MASKED: "dim", TRUNCATED: "red strike"}

LINE_SECONDS = 10.0
"""Without a terminal, a long piece of work says how far it is this often."""


def make_reporter(*, quiet: bool = False) -> Reporter:
    """Return the voice that fits this process: a terminal's, plain lines, or none but rank 0's."""
    if not speaking_rank():
        return SilentReporter()
    if quiet or not sys.stderr.isatty():
        return LineReporter(quiet=quiet)
    return TerminalReporter()


class SilentReporter(PlainReporter):
    """Says nothing: what a rank other than 0 has to say, rank 0 says."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def warn(self, text: str) -> None:
        """Keep the warning to itself."""


class LineReporter(PlainReporter):
    """Plain lines for logs and pipes."""

    @contextmanager
    def progress(
        self, title: str, total: float, unit: str, done: float = 0
    ) -> Iterator[ProgressBar]:
        """Say how far the work is every ten seconds; steps of a run speak through their metrics."""
        del done
        yield _LineBar(self, title, total, unit)


class _LineBar:
    def __init__(self, reporter: PlainReporter, title: str, total: float, unit: str) -> None:
        self.reporter, self.title, self.total, self.unit = reporter, title, total, unit
        self.done = 0.0
        self.started = self.spoke = time.monotonic()

    def advance(self, amount: float, **fields: float | str) -> None:
        """Add ``amount`` and say so when the last word was long ago."""
        self.done += amount
        now = time.monotonic()
        if self.unit == "steps" or now - self.spoke < LINE_SECONDS or not self.total:
            return
        self.spoke = now
        left = (now - self.started) * max(0.0, self.total - self.done) / max(self.done, 1e-9)
        self.reporter.say(
            f"{self.title}: {self.done / self.total:.0%} of {amount_of(self.total, self.unit)}, "
            f"{left:.0f} s left"
        )


class TerminalReporter:
    """Bars and colour on a terminal; rich obeys NO_COLOR."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """Print one line of talk above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one warning above the bar."""
        self.console.print(f"[yellow]warning:[/yellow] {_plain_markup(text)}", soft_wrap=True)

    def sample(self, segments: Sequence[Segment]) -> None:
        """Print a text in colours; without them in brackets."""
        from rich.text import Text

        if self.console.no_color:
            self.say(bracketed(segments))
            return
        coloured = [(text, SEGMENT_STYLES[kind]) for kind, text in segments]
        self.console.print(Text.assemble(*coloured), soft_wrap=True)

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        """Print validation metrics; those of a training step stand beside the bar."""
        if values.get("split") != "train":
            self.say("  ".join(f"{name} {short(value)}" for name, value in values.items()))

    @contextmanager
    def progress(
        self, title: str, total: float, unit: str, done: float = 0
    ) -> Iterator[ProgressBar]:
        """Draw a bar with what is done, what is left and the latest fields; gone when it is done."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            *([BarColumn(BAR_WIDTH)] if self.console.width >= BAR_FROM else []),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as drawn:
            yield _TerminalBar(drawn, title, (done, total), unit)


class _TerminalBar:
    def __init__(self, drawn: Any, title: str, amounts: tuple[float, float], unit: str) -> None:
        self.drawn, self.unit = drawn, unit
        self.done, self.total = amounts
        self.task = drawn.add_task(
            title, completed=self.done, total=self.total or 1, amount="", latest=""
        )

    def advance(self, amount: float, **fields: float | str) -> None:
        """Move the bar on and show the latest fields."""
        self.done += amount
        total = amount_of(self.total, self.unit)
        done = amount_of(self.done, self.unit)
        words = f"{done.removesuffix(f' {self.unit}')} of {total}"
        latest = "  ".join(f"{name} {short(value)}" for name, value in fields.items())
        self.drawn.update(self.task, advance=amount, amount=words, latest=latest)


def failure(message: str, *, is_error: bool) -> None:
    """Print what ended the command, as one paragraph on stderr."""
    label = "error: " if is_error else ""
    if label and _coloured(sys.stderr):
        label = typer.style(label, fg="red", bold=True)
    rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
    sys.stderr.write(f"{rank}{label}{message}\n")


def document(value: Any) -> None:
    """Print one JSON document on stdout."""
    emit(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def result(value: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a command's result: JSON, or names and values."""
    if as_json:
        document(value)
    else:
        emit("\n".join(_lines(value, 0)))


def run_result(value: Mapping[str, Any], *, as_json: bool, with_ranks: bool) -> None:
    """Print what a run ended with; people see the table of its ranks only when they ask for it."""
    ranks = value.get("ranks", [])
    if as_json:
        document(value)
        return
    emit("\n".join(_lines({name: v for name, v in value.items() if name != "ranks"}, 0)))
    if with_ranks and ranks:
        header = [name.replace("_", " ") for name in ranks[0]]
        columns([[str(cell) for cell in row.values()] for row in ranks], header)


def answers(found: Sequence[Mapping[str, Any]]) -> None:
    """Print what a model answered; a single answer was shown while it was written."""
    if len(found) > 1:
        emit("\n\n".join(f"{one['source']}:\n{one['response']}" for one in found))


def stream(text: str) -> None:
    """Write a part of an answer to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def config(merged: Merged, *, as_json: bool) -> None:
    """Print a merged configuration with the source of every value."""
    if as_json:
        document(
            {
                "config": merged.tree,
                "sources": merged.sources,
                "notes": merged.notes,
                "warnings": merged.warnings,
            }
        )
        return
    for warning in merged.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    rows = list(_config_rows(merged.tree, merged.sources, "", 0))
    width = min(60, max(len(text) for text, source in rows if source))
    dim = _coloured(sys.stdout)
    lines: list[str] = []
    for text, source in rows:
        comment = f"# {source}" if source else ""
        lines.append(
            f"{text:<{width}}  {typer.style(comment, dim=True) if dim else comment}".rstrip()
        )
    emit("\n".join(lines))


def emit(text: str) -> None:
    """Write a result to stdout; a reader that has gone away is no error."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain again when it closes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def columns(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Print rows under a header, in aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )
    emit("\n".join(lines))


def amount_of(value: float, unit: str) -> str:
    """Return an amount with its unit: ``1.5 GB``, ``40 steps``."""
    if unit != "bytes":
        return f"{value:,.0f} {unit}"
    for name in ("bytes", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} bytes" if name == "bytes" else f"{value:.1f} {name}"
        value /= 1000
    return f"{value:.1f} TB"


def short(value: object) -> str:
    """Return a value as a person reads it: a fraction with at most five digits."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _lines(value: Mapping[str, Any], depth: int) -> Iterator[str]:
    width = max((len(str(name)) for name in value), default=0)
    for name, inner in value.items():
        label = str(name).replace("_", " ")
        if isinstance(inner, Mapping) and inner:
            yield f"{'  ' * depth}{label}"
            yield from _lines(inner, depth + 1)
        elif isinstance(inner, list | tuple) and inner:
            yield f"{'  ' * depth}{label}"
            yield from (f"{'  ' * (depth + 1)}{item}" for item in inner)
        else:
            words = "none" if inner is None or inner == [] else short(inner)
            yield f"{'  ' * depth}{label:<{width}}  {words}"


def _config_rows(
    tree: Mapping[str, Any], sources: Mapping[str, str], prefix: str, depth: int
) -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield f"{'  ' * depth}{name}:", ""
            yield from _config_rows(value, sources, f"{prefix}{name}.", depth + 1)
        else:
            shown = json.dumps(value, ensure_ascii=False, default=str)
            yield f"{'  ' * depth}{name}: {shown}", sources.get(f"{prefix}{name}", "")


def _plain_markup(text: str) -> str:
    return text.replace("[", r"\[")


def _coloured(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR")
