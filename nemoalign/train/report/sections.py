"""The parts of a report, each from what is known and empty when nothing is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from nemoalign.log import TRAINED
from nemoalign.train.report.curves import words
from nemoalign.train.report.markup import Html, join, table, tag
from nemoalign.train.report.read import Run

TEXT_LIMIT = 4000
"""Characters of one text that are shown: its beginning and its end."""

SHOWN_VALIDATIONS, SHOWN_GENERATIONS, SHOWN_WARNINGS = 5, 20, 100

NUMBERS = (
    "steps", "epochs", "consumed_samples", "tokens", "tokens_per_second", "seconds",
    "peak_memory_gib", "skipped_steps", "resumed_at",
)  # fmt: skip


def head(run: Run) -> Html:
    """Return title, state, where from, and how it ended."""
    about = run.about
    state, sentence = _state(run)
    lines = [about.get("source"), sentence, about.get("started") and f"started {about['started']}"]
    return tag(
        "header",
        tag("h1", title(run), " ", tag("span", state, class_=f"state {state}")),
        *(tag("p", line, class_="soft") for line in lines if line),
    )


def title(run: Run) -> str:
    """Return what the report is called."""
    return f"{run.about.get('algorithm', 'run')} \u00b7 {run.directory.resolve().name}"


def numbers(run: Run) -> Html:
    """Return the few numbers a person looks for first."""
    summary = run.summary or run.last
    found = {name: summary[name] for name in NUMBERS if summary.get(name) is not None}
    best = summary.get("best")
    if isinstance(best, Mapping):
        found["best"] = ", ".join(f"{name} {short(value)}" for name, value in best.items())
    for split in ("val", "test"):
        for metric, curves in run.curves.items():
            if curves.get(split):
                found[f"{split}_{metric}"] = curves[split][max(curves[split])]
    cards = (
        tag("div", tag("dt", words(name)), tag("dd", short(value))) for name, value in found.items()
    )
    return tag("dl", *cards)


def warnings(run: Run) -> Html:
    """Return what the run was warned of, before and while it trained."""
    said = [str(text) for text in run.about.get("warnings") or []]
    said += [f"step {entry.get('step')}: {entry.get('warning')}" for entry in run.warnings]
    shown = said[-SHOWN_WARNINGS:]
    left_out = [f"{len(said) - len(shown)} earlier ones: warnings.jsonl"] * (len(said) > len(shown))
    if not said:
        return Html("")
    return section(
        "Warnings", tag("ul", *(tag("li", t) for t in [*left_out, *shown]), class_="warnings")
    )


def samples(run: Run) -> Html:
    """Return the first rows as they are trained: what is masked is pale, cut text struck, learned marked."""
    made: list[Html] = []
    for sample in run.about.get("samples") or []:
        parts = [
            tag("mark", cut(text)) if kind == TRAINED else tag("span", cut(text), class_=kind)
            for kind, text in sample["parts"]
        ]
        made.append(join([tag("p", sample["title"], class_="soft"), tag("pre", *parts)]))
    return section("Samples as they are trained", *made)


def generations(run: Run) -> Html:
    """Return what the model answered at the last validations, the newest opened."""
    by_step: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in run.generations:
        by_step.setdefault(entry.get("step"), []).append(entry)
    made: list[Html] = []
    for number, step in enumerate(list(by_step)[::-1][:SHOWN_VALIDATIONS]):
        rows = (
            [tag("pre", cut(entry.get("prompt"))), tag("pre", tag("mark", cut(entry.get("response"))))]
            for entry in by_step[step][:SHOWN_GENERATIONS]
        )  # fmt: skip
        inside = table(("prompt", "response"), rows)
        opened = {"open": ""} if number == 0 else {}
        made.append(tag("details", tag("summary", f"after step {step}"), inside, **opened))
    return section("Generations", *made)


def data(run: Run) -> Html:
    """Return what was found in the rows before training."""
    lines = [tag("p", line) for line in run.about.get("data") or []]
    return section("Data", *lines, *([_nested(run.data)] if run.data else []))


def config(run: Run) -> Html:
    """Return every setting with where its value came from; those that somebody chose come first."""
    values: Mapping[str, Any] = run.about.get("config") or {}
    if not values:
        return Html("")
    sources: Mapping[str, str] = run.about.get("sources") or {}
    rows = [
        [tag("code", key), tag("code", json.dumps(value, ensure_ascii=False)), sources.get(key, "")]
        for key, value in values.items()
    ]
    header = ("setting", "value", "from")
    chosen = [row for row in rows if not str(row[2]).startswith(("default", "checkpoint"))]
    everything = tag("details", tag("summary", f"all {len(rows)} settings"), table(header, rows))
    return section("Settings", table(header, chosen), everything)


def ranks(run: Run) -> Html:
    """Return time and memory of every rank."""
    rows = cast("Sequence[Mapping[str, Any]]", run.summary.get("ranks") or [])
    return section("Ranks", _nested(rows)) if rows else Html("")


def environment(run: Run) -> Html:
    """Return the command and the versions it ran with."""
    command, versions = run.about.get("command"), run.about.get("versions")
    made = [tag("pre", tag("code", command))] if command else []
    return section("Command and versions", *made, *([_nested(versions)] if versions else []))


def _state(run: Run) -> tuple[str, str]:
    """Return one word for the state, and a sentence about it."""
    steps, last = run.last.get("step", 0), run.about.get("max_steps")
    far = f"step {steps:,} of {last:,}" if isinstance(last, int) else f"step {steps:,}"
    if run.summary:
        return str(run.summary.get("state", "finished")), str(run.summary.get("reason") or far)
    return "running", f"{far}; this page is as old as its last validation or checkpoint"


def section(heading: str, *inside: Html) -> Html:
    """Return a part of the page under its heading; nothing where nothing is inside."""
    return tag("section", tag("h2", heading), *inside) if any(inside) else Html("")


def _nested(value: Any) -> Html:
    """Return any JSON value as tables."""
    if isinstance(value, Mapping):
        rows = cast("Mapping[str, Any]", value).items()
        return table((), ([tag("span", words(str(name))), _nested(inner)] for name, inner in rows))
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        names = list(dict.fromkeys(name for item in value for name in item))
        rows = ([_nested(item.get(name, "")) for name in names] for item in value)
        return table([words(str(name)) for name in names], rows)
    if isinstance(value, list):
        return join(tag("p", short(item)) for item in cast("list[Any]", value))
    return tag("span", short(value))


def short(value: object) -> str:
    """Return a value as a person reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.5g}" if isinstance(value, float) else cut(value)


def cut(value: object) -> str:
    """Return the beginning and the end of a text that is long."""
    whole = str(value)
    if len(whole) <= TEXT_LIMIT:
        return whole
    half = TEXT_LIMIT // 2
    return f"{whole[:half]} [... {len(whole) - TEXT_LIMIT:,} characters ...] {whole[-half:]}"
