"""From settings to flags: one typer option per setting that declares a flag.

An option's default is None, "not given", so that only what was typed enters the merge; the setting's own
default is part of the help text, which ends with the key the flag sets. Values stay text here: the
settings type them, so a flag and ``--set`` take the same spellings and give the same answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    TypeVar,
    cast,
    get_args,
    get_origin,
)

import typer

from nemoalign.config.fields import Entry, own_settings
from nemoalign.config.values import Reject, plain
from nemoalign.errors import ConfigError

if TYPE_CHECKING:
    from nemoalign.cli.spec import CommandSpec

T = TypeVar("T")


def parameter(entry: Entry) -> inspect.Parameter:
    """Return one flag as a keyword parameter, annotated as typer reads it."""
    names = [name for name in (entry.setting.short, entry.setting.flag) if name is not None]
    if entry.type is bool:
        kind: Any = bool | None
    else:
        kind = list[str] | None if is_list(entry) else str | None
    option = typer.Option(
        *names,
        help=help_text(entry),
        metavar=None if entry.type is bool else metavar(entry),
        show_default=False,
        rich_help_panel=entry.setting.panel,
    )
    return inspect.Parameter(
        parameter_name(entry),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def given(entries: Iterable[Entry], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return key -> value for the flags that were typed; ``typed`` is by parameter name."""
    found: dict[str, Any] = {}
    for entry in entries:
        value = typed.get(parameter_name(entry))
        if value is None or value == []:
            continue
        if isinstance(value, list) and entry.setting.choices is not None:
            value = [part for item in cast("list[str]", value) for part in item.split(",")]
        found[entry.key] = value
    return found


def read(cls: type[T], typed: Mapping[str, Any]) -> T:
    """Return the flat dataclass of flags ``cls`` from what was typed.

    Raises:
        ConfigError: in the words typed, for a flag that is missing or has a wrong value.
    """
    entries = own_settings(cls)
    values = given(entries, typed)
    made: dict[str, Any] = {}
    for entry in entries:
        if entry.key not in values:
            if entry.setting.shown == REQUIRED:
                flag = entry.setting.short or entry.setting.flag
                raise ConfigError(f"{flag} {metavar(entry)} is missing: {entry.setting.help}")
            made[entry.key] = entry.default
            continue
        try:
            made[entry.key] = entry.read(values[entry.key])
        except Reject as reason:
            raise ConfigError(
                f"{entry.setting.flag} {values[entry.key]} does not work: it {reason}."
            ) from reason
    return cls(**made)


REQUIRED = "required"
"""What ``shown`` says of a flag that has no default."""


def parameter_name(entry: Entry) -> str:
    """Return the Python name of a flag's parameter: ``--max-steps`` is ``max_steps``."""
    return str(entry.setting.flag).partition("/")[0].lstrip("-").replace("-", "_")


def help_text(entry: Entry) -> str:
    """Return what help says of a flag: sentence, default, and the key it sets at the end."""
    default = shown_default(entry)
    words = f" (default: {default})"
    if default is None or default == REQUIRED:
        words = "" if default is None else " (required)"
    key = f" [{entry.key}]" if "." in entry.key else ""
    return f"{entry.setting.help.rstrip('.')}{words}{key}"


def shown_default(entry: Entry) -> str | None:
    """Return the default as help words it; None where nothing is the default."""
    default = entry.default
    if entry.setting.shown is not None:
        return entry.setting.shown
    if isinstance(default, bool):
        return ("on" if default else "off") if "." in entry.key else None
    for spelling, stored in (entry.setting.choices or {}).items():
        if stored == default:
            return spelling
    value = plain(default)
    if isinstance(value, list):
        return ",".join(map(str, cast("list[Any]", value))) or None
    return f"{value:g}" if isinstance(value, float) else None if value is None else str(value)


def metavar(entry: Entry) -> str:
    """Return what stands for a flag's value in help: its choices, or a word for its type."""
    known = entry.setting
    if known.metavar is not None:
        return known.metavar
    if known.choices is not None:
        return "NAMES" if is_list(entry) else "|".join(known.choices)
    kinds = {entry.type, *get_args(entry.type)}
    for kind, word in ((int, "N"), (float, "X"), (Path, "PATH")):
        if kind in kinds:
            return word
    return "TEXT"


def golden(commands: Iterable[CommandSpec]) -> str:
    """Return every flag of every command, one a line: a new flag is a line somebody reviews."""
    lines: list[str] = []
    for command in commands:
        for entry in command.entries:
            names = ", ".join(n for n in (entry.setting.short, entry.setting.flag) if n)
            value = "" if entry.type is bool else f" {metavar(entry)}"
            lines.append(f"{command.name} {names}{value}  {help_text(entry)}")
    return "\n".join([*lines, ""])


def is_list(entry: Entry) -> bool:
    """True for a flag that may be repeated."""
    return get_origin(entry.type) is tuple and get_args(entry.type)[-1] is Ellipsis


if __name__ == "__main__":
    import sys

    from nemoalign.cli.app import COMMANDS

    Path(sys.argv[1]).write_text(golden(COMMANDS), encoding="utf-8")
