"""A command as data becomes a command of the program."""

from dataclasses import dataclass
from pathlib import Path

import typer

from nemoalign.cli.help import Group
from nemoalign.cli.spec import CommandSpec, Positional, Talk
from nemoalign.config.fields import own_settings, setting


@dataclass(frozen=True, kw_only=True)
class Flags(Talk):
    out: Path | None = setting(None, "Target.", flag="--out", short="-o", panel="Where")
    names: tuple[str, ...] = setting((), "Names.", flag="--name", panel="Where")
    loud: bool = setting(False, "Loud.", flag="--loud/--no-loud", panel="Where")


def typed_by(*arguments: str, is_list: bool = False) -> dict:
    """Return what the command's function gets for a command line."""
    seen: list[dict] = []
    spec = CommandSpec(
        name="do",
        summary="Do it.",
        panel="Doing",
        example="x -o y",
        positional=Positional(name="thing", metavar="THING", help="A thing.", is_list=is_list),
        entries=own_settings(Flags),
        run=lambda typed: seen.append(dict(typed)),
    )
    app = typer.Typer(cls=Group, rich_markup_mode=None)
    app.callback()(lambda: None)
    spec.register(app)
    app(args=["do", *arguments], standalone_mode=False)
    return {name: value for name, value in seen[0].items() if value not in (None, False)}


def test_values_stay_text_and_what_was_not_typed_is_none():
    assert typed_by("a", "-o", "b", "--name", "1", "--name", "2") == {
        "thing": "a",
        "out": "b",
        "name": ["1", "2"],
    }
    assert typed_by("a", "--loud", "--json") == {"thing": "a", "loud": True, "json": True}
    assert typed_by("a", "--out=b=c") == {"thing": "a", "out": "b=c"}


def test_a_list_of_words_may_be_empty():
    assert typed_by("a", "b", "--loud", is_list=True) == {"thing": ["a", "b"], "loud": True}
    assert typed_by(is_list=True).get("thing") in (None, [])
