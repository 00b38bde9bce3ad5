"""Help pages: grouped, at most 100 columns, and drawn without rich, which would cost half the budget."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDTH = 100
OTHER = "Every command"
NAME_COLUMN = 26
HELP = "show_help"
"""Name of the parameter of ``--help``."""


def _show_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.get_help())
        raise typer.Exit


HelpOption = Annotated[
    bool,
    typer.Option(
        "-h",
        "--help",
        is_eager=True,
        callback=_show_help,
        help="Show this page.",
        show_default=False,
    ),
]
"""Typer's own has no default, and pydantic would be loaded to convert it."""


class Command(TyperCommand):
    """A command whose help groups its options by panel, and whose values stay as typed.

    Typer converts values with pydantic, which takes longer to load than ``inspect`` takes to work;
    ours are text until the settings type them.
    """

    def __init__(self, *args: Any, **known: Any) -> None:
        super().__init__(*args, **known)
        for param in self.params:
            if param.name != HELP:
                vars(param)["process_value"] = _as_typed

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, what the command does, its options by panel, and examples."""
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        _write_head(self, ctx, formatter, [*map(_usage, arguments), "[OPTIONS]"])
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            panel = getattr(param, "rich_help_panel", None) or OTHER
            panels.setdefault(panel, []).append((_names(param), getattr(param, "help", None) or ""))
        for panel in sorted(panels, key=lambda name: name == OTHER):
            _write_section(formatter, panel, panels[panel])
        _write_epilog(self, formatter)


class Group(TyperGroup):
    """The program itself: its help lists the commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, the commands by panel, the global options, and what exit codes mean."""
        _write_head(self, ctx, formatter, ["COMMAND", "[OPTIONS]"])
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = command.rich_help_panel or OTHER
            panels.setdefault(panel, []).append((name, command.help.partition("\n")[0]))
        for panel, rows in panels.items():
            _write_section(formatter, panel, rows)
        options = [(_names(p), getattr(p, "help", "") or "") for p in self.get_params(ctx)]
        _write_section(formatter, OTHER, options)
        _write_epilog(self, formatter)


def _as_typed(ctx: Any, value: Any) -> Any:
    del ctx
    return list(value) if isinstance(value, tuple) else value


def _write_head(command: Any, ctx: Any, formatter: Any, pieces: list[str]) -> None:
    formatter.width = min(WIDTH, max(formatter.width, 40))
    formatter.write_usage(ctx.command_path, " ".join(pieces))
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(command.help or "")


def _write_section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    formatter.write_paragraph()
    formatter.write(f"{_bold(title)}\n")
    with formatter.indentation():
        padded = [(name.ljust(NAME_COLUMN), text) for name, text in rows]
        formatter.write_dl(padded, col_max=NAME_COLUMN)


def _write_epilog(command: Any, formatter: Any) -> None:
    if command.epilog:
        formatter.write_paragraph()
        formatter.write(f"{command.epilog}\n")


def _usage(argument: Any) -> str:
    return argument.metavar if argument.nargs == 1 else f"[{argument.metavar}]..."


def _names(param: Any) -> str:
    """Return how a parameter is typed: ``-o, --out RUN_DIR``, ``--shuffle/--no-shuffle``, ``SRC``."""
    if param.param_type_name == "argument":
        return param.metavar or param.name.upper()
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        names += f" / {param.secondary_opts[0]}"
    return names if param.is_flag or not param.metavar else f"{names} {param.metavar}"


def _bold(text: str) -> str:
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return typer.style(text, bold=True) if wanted else text
