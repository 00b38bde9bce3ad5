"""The whole page: head, numbers, curves and what else the files of a run directory say."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from nemoalign.train.report import sections
from nemoalign.train.report.curves import panels
from nemoalign.train.report.look import SCRIPT, STYLE
from nemoalign.train.report.markup import Html, join, tag
from nemoalign.train.report.read import Run, read_run
from nemoalign.train.report.rollouts import rollouts

REPORT = "report.html"


def write_report(directory: Path) -> Path:
    """Write ``report.html`` from the other files of a run directory and return its path.

    It appears whole or not at all; a reader never sees half of it.
    """
    target = directory / REPORT
    temporary = directory / f".{REPORT}.tmp"
    temporary.write_text(page(read_run(directory)), encoding="utf-8")
    temporary.replace(target)
    return target


def page(run: Run) -> str:
    """Return the document. It asks no network for anything, and says so to the browser."""
    script = Html(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    meta = Html(
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    top = tag("head", meta, tag("title", sections.title(run)), tag("style", Html(STYLE)))
    inside = join(
        (
            sections.head(run),
            sections.numbers(run),
            sections.warnings(run),
            tag("section", tag("h2", "Curves"), tag("div", panels(run.curves), class_="curves")),
            rollouts(run),
            sections.generations(run),
            sections.samples(run),
            sections.data(run),
            sections.config(run),
            sections.ranks(run),
            sections.environment(run),
        ),
        "\n",
    )
    body = tag("body", tag("main", inside), tag("script", script))
    return f"<!doctype html>\n{tag('html', top, body, lang='en')}\n"
