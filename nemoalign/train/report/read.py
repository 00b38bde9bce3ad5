"""What the files of a run directory say, as far as they are there: a report never depends on one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nemoalign.train.rollout_file import ROLLOUTS, first_rows, last_rows

BOOKKEEPING = ("step", "consumed_samples", "epoch", "updates")
"""Numbers of a line of ``metrics.jsonl`` that are no curve."""

KEPT_ROLLOUTS = 6
"""Rows of a step that a report shows of ``rollouts.jsonl``."""

Curve = dict[int, float]
"""Step -> value; where a step occurs twice the last line counts."""


@dataclass
class Run:
    """Everything a report shows."""

    directory: Path
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """``run.json``: what the run was asked to do, with what."""
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Empty while the run goes on, or when it was killed."""
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict[str, dict[str, Curve]])
    """Metric -> split -> curve."""
    last: dict[str, Any] = field(default_factory=dict[str, Any])
    """The last line of training."""
    warnings: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    generations: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    rollouts: list[list[Mapping[str, Any]]] = field(default_factory=list[list[Mapping[str, Any]]])
    """The last rows of the newest step that sampled, and the first ones of the first such step."""
    data: Any = None


def read_run(directory: Path) -> Run:
    """Return what a run directory holds; broken and missing files are left out."""
    run = Run(
        directory,
        about=_mapping(_document(directory / "run.json")),
        summary=_mapping(_document(directory / "summary.json")),
        warnings=list(_lines(directory / "warnings.jsonl")),
        generations=list(_lines(directory / "generations.jsonl")),
        rollouts=_rollouts(directory / ROLLOUTS),
        data=_document(directory / "data_report.json"),
    )
    for line in _lines(directory / "metrics.jsonl"):
        _add(run, line)
    return run


def _add(run: Run, line: Mapping[str, Any]) -> None:
    split, step = str(line.get("split", "")), line.get("step")
    if not isinstance(step, int):
        return
    if split == "train":
        run.last = dict(line)
    for name, value in line.items():
        if name not in BOOKKEEPING and _is_number(value):
            metric = name.removeprefix(f"{split}_")
            run.curves.setdefault(metric, {}).setdefault(split, {})[step] = float(value)


def _rollouts(path: Path) -> list[list[Mapping[str, Any]]]:
    newest, first = last_rows(path, KEPT_ROLLOUTS), first_rows(path, KEPT_ROLLOUTS)
    if newest and newest[0]["step"] == first[0]["step"]:
        return [newest]
    return [newest, first] if newest else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a JSONL file; the last line may be half written."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield cast("dict[str, Any]", value)


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
