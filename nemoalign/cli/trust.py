"""What ``inspect --check`` and ``inspect --diff`` print, and the exit code they end with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemoalign.cli.spec import Talk
from nemoalign.errors import VerificationError

SHOWN_PROBLEMS = 20


def check(source: str, known: Talk) -> int:
    """Check a checkpoint, print what was found, and return the exit code: 0 intact, 6 not."""
    from nemoalign.checkpoint.check import check as check_source
    from nemoalign.cli import show

    report = check_source(source, show.make_reporter(quiet=known.quiet))
    problems = report["problems"]
    if known.json:
        show.document(report)
    else:
        show.emit("\n".join(_checked(report)))
    if not problems:
        return 0
    first = _problem(problems[0])
    more = f" {len(problems) - 1} more problems were found." if len(problems) > 1 else ""
    show.failure(f"{source} fails the check: {first.rstrip('.')}.{more}", is_error=True)
    return VerificationError.exit_code


def _checked(report: Mapping[str, Any]) -> Iterator[str]:
    from nemoalign.cli import show

    if report["what"]:
        yield f"{report['what']}\n"
    size = show.amount_of(report["bytes"], "bytes")
    seconds = f"{report['seconds']:.1f} s"
    yield f"read      {size}, every byte of the weights, in {seconds}"
    yield f"sums      {_sums(report)}"
    if report["what"]:
        yield f"shapes    {report['tensors']} tensors, as the configuration asks"
    if report["shared_tensors"]:
        yield f"copies    {report['shared_tensors']} tensors are stored more than once and compared"
    if not report["not_finite"]:
        yield "values    no NaN, no infinity"
    for name, count in report["not_finite"].items():
        yield f"values    {count} NaN or infinite in {name}"
    for problem in report["problems"][:SHOWN_PROBLEMS]:
        yield f"DAMAGED   {_problem(problem)}"
    yield _verdict(report)


def _sums(report: Mapping[str, Any]) -> str:
    if not report["weights_have_sums"]:
        return "none are stored with these weights"
    parts = [f"{report['sums']} of torch records"] if report["sums"] else []
    if report["manifest"]:
        parts.append(f"{report['manifest_sums']} of {report['manifest']}")
    return f"CRC-32, {' and '.join(parts)}"


def _verdict(report: Mapping[str, Any]) -> str:
    if not report["intact"]:
        return f"{len(report['problems'])} problems"
    if not report["weights_have_sums"]:
        return "complete, but without sums a changed value cannot be told from a trained one"
    return "intact"


def _problem(problem: Mapping[str, str]) -> str:
    place = ", ".join(filter(None, (problem["tensor"], problem["file"])))
    return f"{place}: {problem['problem']}" if place else problem["problem"]


def diff(left: str, right: str, known: Talk) -> int:
    """Compare two checkpoints, print what differs, and return the exit code: 0 the same, 6 not."""
    from nemoalign.checkpoint.diff import diff as diff_sources
    from nemoalign.cli import show

    report = diff_sources(left, right, show.make_reporter(quiet=known.quiet))
    if known.json:
        show.document(report)
    else:
        show.emit("\n".join(_differences(report)))
    return 0 if report["same"] else VerificationError.exit_code


def _differences(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"< {report['left']}"
    yield f"> {report['right']}\n"
    for row in report["architecture"]:
        yield _change("config", row["field"], row["left"], row["right"])
    yield from _shortened([f"tensor     only in <: {name}" for name in report["only_left"]])
    yield from _shortened([f"tensor     only in >: {name}" for name in report["only_right"]])
    yield from _shortened([_tensor(row) for row in report["differing"]])
    for row in report["tokenizer"]:
        sides = [row["left"] is not None, row["right"] is not None]
        where = "differs" if all(sides) else f"only in {'<' if sides[0] else '>'}"
        yield f"tokenizer  {row['file']}: {where}"
    for row in report["template"]:
        yield _change("template", row["field"], row["left"], row["right"])
    rows = report["settings"]
    yield from _shortened([_change("recorded", r["field"], r["left"], r["right"]) for r in rows])
    compared = f"{report['compared']} tensors compared, {report['seconds']:.1f} s"
    yield f"{'same' if report['same'] else 'different'}: {compared}"


def _change(what: str, name: str, left: Any, right: Any) -> str:
    return f"{what:<9}  {name}: {_value(left)} -> {_value(right)}"


def _value(value: Any) -> str:
    import json

    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _tensor(row: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {' -> '.join(map(str, row[name]))}" for name in ("shape", "dtype") if name in row
    ]
    if row.get("differing"):
        largest = row["max_abs_diff"]
        by = "some are no numbers" if largest is None else f"by at most {largest:.3g}"
        parts.append(f"{row['differing']:,} of {row['elements']:,} values differ, {by}")
    return f"tensor     {row['name']}: {', '.join(parts)}"


def _shortened(lines: list[str]) -> Iterator[str]:
    yield from lines[:SHOWN_PROBLEMS]
    if len(lines) > SHOWN_PROBLEMS:
        yield f"           and {len(lines) - SHOWN_PROBLEMS} more; --json lists all"
