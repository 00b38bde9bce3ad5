"""A command as data: what help, typer, completions and the golden list of flags are made from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nemoalign.cli import flags
from nemoalign.cli.help import HELP, Command, HelpOption
from nemoalign.config.fields import Entry, PathKind, Section, setting
from nemoalign.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Talk(Section):
    """Flags of every command."""

    json: bool = setting(False, "Print the result as one JSON document.", flag="--json")
    verbose: bool = setting(False, "Say more; show tracebacks.", flag="--verbose", short="-v")
    quiet: bool = setting(False, "Say only warnings.", flag="--quiet", short="-q")


@dataclass(frozen=True, kw_only=True)
class Positional:
    """What is typed without a flag."""

    name: str
    metavar: str
    help: str
    path_kind: PathKind | None = None
    is_list: bool = False
    panel: str = "Input and output"


@dataclass(frozen=True, kw_only=True)
class CommandSpec:
    """One command: its words, its flags and what it does with them."""

    name: str
    summary: str
    panel: str
    example: str
    """What to type after ``nemoalign <name>``."""
    more_examples: Sequence[str] = ()
    positional: Positional
    entries: Sequence[Entry]
    run: Callable[[Mapping[str, Any]], int | None]
    """Takes what was typed, by parameter name (None is not given); may return an exit code."""

    def register(self, app: typer.Typer) -> None:
        """Add the command to the program."""

        def command(**typed: Any) -> int | None:
            if typed[self.positional.name] is None and not self.positional.is_list:
                raise ConfigError(
                    f"{self.positional.metavar} is missing. Type: nemoalign {self.name} {self.example}"
                )
            return self.run(typed)

        show_help = inspect.Parameter(
            HELP, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=HelpOption
        )
        options = [flags.parameter(entry) for entry in self.entries]
        parameters = [self._argument(), *options, show_help]
        command.__doc__ = self.summary
        vars(command)["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(
            self.name,
            cls=Command,
            add_help_option=False,
            rich_help_panel=self.panel,
            epilog="\n".join(["Examples", *self._examples()]),
        )(command)

    def _examples(self) -> list[str]:
        return [f"  nemoalign {self.name} {words}" for words in (self.example, *self.more_examples)]

    def _argument(self) -> inspect.Parameter:
        known = self.positional
        kind: Any = list[str] | None if known.is_list else str | None
        argument = typer.Argument(
            metavar=known.metavar,
            help=known.help,
            show_default=False,
            rich_help_panel=known.panel,
        )
        return inspect.Parameter(
            known.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind, argument],
        )
