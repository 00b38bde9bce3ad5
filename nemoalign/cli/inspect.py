"""The command that shows what a checkpoint is, from headers and index, in half a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.cli import flags
from nemoalign.cli.checkpoint import PANEL, SOURCE
from nemoalign.cli.report import model_rows, vit_rows
from nemoalign.cli.spec import CommandSpec, Talk
from nemoalign.config.fields import own_settings, setting

if TYPE_CHECKING:
    from nemoalign.checkpoint.settings.chat_template import ChatTemplate
    from nemoalign.checkpoint.sources.remote import Remote
    from nemoalign.checkpoint.sources.source import Source
    from nemoalign.checkpoint.vit.source import VitSource

SHOWN = "What is shown"
PATTERN_FLAG = "--tensors"
EVERY_TENSOR = "*"
DIFF_FLAG = "--diff"
VALUE_FLAGS = ("-k", "--key", DIFF_FLAG)


@dataclass(frozen=True, kw_only=True)
class InspectFlags(Talk):
    """Flags of inspect."""

    template: bool = setting(
        False,
        "Print only the template of a prompt; with --json also as Jinja, the form export installs.",
        flag="--template",
        panel=SHOWN,
    )
    tensors: str | None = setting(
        None,
        "Print name, shape and type of the tensors, all or those that match GLOB.",
        flag=PATTERN_FLAG,
        metavar="[GLOB]",
        panel=SHOWN,
    )
    check: bool = setting(
        False, "Read every byte and compare the sums that are stored.", flag="--check", panel=SHOWN
    )
    diff: Path | None = setting(
        None,
        "Compare with OTHER, a checkpoint of any form, and name what differs.",
        flag=DIFF_FLAG,
        metavar="OTHER",
        path_kind="any",
        panel=SHOWN,
    )
    key: str | None = setting(
        None,
        "Print only this value of model_config.yaml, such as optim.lr.",
        flag="--key",
        short="-k",
        metavar="KEY",
        panel=SHOWN,
    )


def with_pattern(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of inspect with ``*`` after a ``--tensors`` that stands alone.

    A word after it is the pattern, unless nothing else could be SRC.
    """
    filled = list(arguments)
    if PATTERN_FLAG not in filled:
        return filled
    place = filled.index(PATTERN_FLAG)
    following = filled[place + 1] if place + 1 < len(filled) else "-"
    if following.startswith("-") or _positionals(filled) == [following]:
        filled.insert(place + 1, EVERY_TENSOR)
    return filled


def _positionals(arguments: Sequence[str]) -> list[str]:
    """Return the words after the command that are neither flags nor values of one."""
    words: list[str] = []
    before = ""
    for word in arguments[1:]:
        if not word.startswith("-") and before not in VALUE_FLAGS:
            words.append(word)
        before = word
    return words


def inspect(typed: Mapping[str, Any]) -> int:
    """Show what a checkpoint is; return 6 when it is damaged or differs from another."""
    known = flags.read(InspectFlags, typed)
    if known.check or known.diff:
        from nemoalign.cli import trust

        if known.diff:
            return trust.diff(typed["source"], str(known.diff), known)
        return trust.check(typed["source"], known)

    from nemoalign.archive.urls import is_url
    from nemoalign.checkpoint import inspect as room
    from nemoalign.checkpoint.open import open_checkpoint
    from nemoalign.cli import show

    remote = _connect(typed["source"]) if is_url(typed["source"]) else None
    source = remote.source if remote else open_checkpoint(typed["source"])
    if known.key is not None:
        value = room.find_value(source, known.key)
        show.document(value) if known.json else show.emit(_raw(value))
    elif known.template:
        _show_template(room.template_of(source), as_json=known.json)
    elif known.tensors is not None:
        _show_tensors(room.list_tensors(source, known.tensors), as_json=known.json)
    else:
        size = {"size_bytes": remote.file.size} if remote else {}
        _show_report(source, room.inspect_source(source) | size, as_json=known.json)
    if remote:
        show.make_reporter(quiet=known.quiet).say(remote.told())
    return 0


def _connect(url: str) -> Remote:
    from nemoalign.checkpoint.sources.remote import open_remote

    return open_remote(url)


def _raw(value: Any) -> str:
    """Return one value as a script reads it: text bare, the rest as JSON."""
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _show_template(template: ChatTemplate, *, as_json: bool) -> None:
    from nemoalign.cli import show

    if not as_json:
        show.emit(template.text)
        return
    told = {"template": template.text, "from": template.origin, "jinja": template.jinja}
    show.document({**told, "notes": list(template.notes)})


def _show_tensors(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    from nemoalign.cli import show

    if as_json:
        show.document(rows)
        return
    shapes = [(row["name"], " x ".join(map(str, row["shape"])), row["dtype"]) for row in rows]
    show.columns(shapes, ("name", "shape", "type"))


def _show_report(source: Source | VitSource, report: Mapping[str, Any], *, as_json: bool) -> None:
    from nemoalign.cli import show

    if as_json:
        show.document(report)
        return
    reporter = show.make_reporter()
    for warning in source.warnings:
        reporter.warn(warning)
    rows = vit_rows if report["family"] == "vit" else model_rows
    show.emit("\n".join([report["what"], "", *_aligned(list(rows(report)))]))


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in rows]


COMMANDS = (
    CommandSpec(
        name="inspect",
        summary="Show what a checkpoint is: family, sizes, layout, tokenizer, template, origin.",
        panel=PANEL,
        example="model.nemo",
        more_examples=(
            "model.nemo -k optim.lr",
            "model.nemo --tensors '*qkv*'",
            "model.nemo --check",
            "model.nemo --diff other/",
        ),
        positional=SOURCE,
        entries=own_settings(InspectFlags),
        run=inspect,
    ),
)
