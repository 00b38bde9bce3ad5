"""What a run sampled and learned from: a few answers of its newest step, and of its first one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemoalign.train.report.curves import words
from nemoalign.train.report.markup import Html, join, table, tag
from nemoalign.train.report.read import Run
from nemoalign.train.report.sections import cut, section, short

HEADER = ("prompt", "response", "reward")


def rollouts(run: Run) -> Html:
    """Return answers with their rewards, those of the newest step opened."""
    made: list[Html] = []
    for number, rows in enumerate(run.rollouts):
        opened = {"open": ""} if number == 0 else {}
        inside = table(HEADER, map(_cells, rows))
        made.append(tag("details", tag("summary", f"step {rows[0]['step']}"), inside, **opened))
    return section("Rollouts", *made)


def _cells(row: Mapping[str, Any]) -> list[Html]:
    """Return the cells of one answer; what else is known of it stands small below its reward."""
    others = [
        tag("p", f"{words(name)} {short(value)}", class_="soft")
        for name, value in row.items()
        if name not in (*HEADER, "step") and not isinstance(value, list | Mapping)
    ]
    return [
        tag("pre", cut(row.get("prompt", ""))),
        tag("pre", tag("mark", cut(row.get("response", "")))),
        join([short(row.get("reward")), *others]),
    ]
