"""``rollouts.jsonl``: every answer a run sampled, an object a line, in the order of steps.

The file grows to gigabytes, so it is read from its ends and never as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

ROLLOUTS = "rollouts.jsonl"
BLOCK_BYTES = 1 << 20

Row = Mapping[str, Any]


def append_rows(path: Path, step: int, rows: Iterable[Row]) -> None:
    """Append the rows of a step, each with its number."""
    # Half a character, which UTF-8 cannot write, becomes the escape that JSON has for it.
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")


def forget_from(path: Path, step: int) -> None:
    """Remove what ``step`` and later ones left, and half a line at the end: they are sampled anew."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        ends = (
            begin + len(line) + 1
            for begin, line in _backwards(file)
            if (row := _row(line)) is not None and row["step"] < step
        )
        file.truncate(next(ends, 0))


def first_rows(path: Path, count: int) -> list[Row]:
    """Return the first rows of the first step, at most ``count``."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        return _of_one_step(file, count)


def last_rows(path: Path, count: int) -> list[Row]:
    """Return the last rows of the last step, at most ``count``, in their order."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        return _of_one_step((line for _, line in _backwards(file)), count)[::-1]


def _of_one_step(lines: Iterable[bytes], count: int) -> list[Row]:
    """Return rows of the step that comes first."""
    found: list[Row] = []
    for line in lines:
        row = _row(line)
        if row is None:
            continue
        if len(found) == count or (found and row["step"] != found[0]["step"]):
            break
        found.append(row)
    return found


def _backwards(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield where each whole line begins, and the line, the last one first."""
    begin = file.seek(0, 2)
    rest = b""
    is_whole = False  # what follows the last line feed is half a line
    while begin > 0:
        size = min(BLOCK_BYTES, begin)
        begin = file.seek(begin - size)
        rest, *lines = (file.read(size) + rest).split(b"\n")
        end = begin + len(rest) + sum(len(line) + 1 for line in lines)
        for line in reversed(lines):
            end -= len(line)
            if is_whole:
                yield end, line
            is_whole = True
            end -= 1
    if is_whole:
        yield 0, rest


def _row(line: bytes) -> Row | None:
    """Return the row of a line; None for one that is broken."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("step"), int):
        return None
    return cast("dict[str, Any]", value)
