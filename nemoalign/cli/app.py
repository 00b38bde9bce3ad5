"""The program: its commands, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import nemoalign
from nemoalign.cli import checkpoint, inspect, reshard, train
from nemoalign.cli.help import Group, HelpOption
from nemoalign.errors import (
    INTERRUPTED,
    STOPPED,
    ConfigError,
    NemoAlignError,
    ResourceError,
)
from nemoalign.launch.lifeline import follow_parent
from nemoalign.launch.reports import report_failure

PROGRAM = "nemoalign"
BUG = 1
FULL = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EFBIG: "No file may be that large here",
}

EXIT_CODES = """Exit codes
  0 done   2 wrong command or setting   3 input missing or no checkpoint   4 content mismatch
  5 output exists, or a resume conflict   6 verification failed   7 GPU, package, memory or disk missing
  8 bad data   9 training diverged   75 stopped and saved: requeue   130 interrupted and saved   1 our bug"""

app = typer.Typer(
    name=PROGRAM,
    cls=Group,
    help="Read, convert, train and export NVIDIA NeMo checkpoints.",
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {nemoalign.__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version",
        is_eager=True,
        callback=_show_version,
        help="Show the version.",
        show_default=False,
    ),
]


@app.callback(add_help_option=False)
def program(show_help: HelpOption = False, version: VersionOption = False) -> None:
    """Read, convert, train and export NVIDIA NeMo checkpoints."""
    del show_help, version


COMMANDS = (*inspect.COMMANDS, *checkpoint.COMMANDS, *reshard.COMMANDS, *train.COMMANDS)
for command in COMMANDS:
    command.register(app)


def main() -> NoReturn:
    """Run the program on the process's arguments and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    follow_parent(os.environ)
    return boundary(partial(_dispatch, list(arguments) or ["--help"]), arguments)


def boundary(action: Callable[[], int], arguments: Sequence[str]) -> int:
    """Return the exit code of ``action``; whatever it raises becomes a sentence and an exit code."""
    try:
        return action()
    except NemoAlignError as error:
        detail = getattr(error, "detail", "") or traceback.format_exc()
        kind = getattr(error, "kind", type(error).__name__)
        return _fail(arguments, str(error), kind, error.exit_code, detail)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(arguments, "Interrupted.", "KeyboardInterrupt", INTERRUPTED, "")
    except (MemoryError, OSError) as error:
        lack = _lack(error)
        code = BUG if lack is None else ResourceError.exit_code
        words = lack or _bug(error)
        return _fail(arguments, words, type(error).__name__, code, traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - the boundary: whatever escapes is our bug, said politely
        return _fail(arguments, _bug(error), type(error).__name__, BUG, traceback.format_exc())


def _dispatch(arguments: list[str]) -> int:
    if arguments[0] == inspect.COMMANDS[0].name:
        arguments = inspect.with_pattern(arguments)
    try:
        code = app(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except typer.TyperException as error:
        raise ConfigError(_usage(error, arguments)) from error
    if code == INTERRUPTED:  # typer has turned Ctrl-C into this
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """Return a sentence for a command line that typer refuses, with the nearest thing that exists."""
    context = getattr(error, "ctx", None)
    named = arguments[0] in [command.name for command in COMMANDS]
    where = f"{PROGRAM} {arguments[0]}" if named else PROGRAM
    typed = getattr(error, "option_name", None)
    if typed is not None and hasattr(error, "possibilities"):
        params = context.command.params if context else []
        names = [name for param in params for name in (*param.opts, *param.secondary_opts)]
        known = {name.lstrip("-"): name for name in names}
        close = difflib.get_close_matches(typed.lstrip("-"), known, n=1, cutoff=0.6)
        hint = f"Did you mean {known[close[0]]}?" if close else f"{where} --help lists the flags."
        return f"{where} has no flag {typed}. {hint}"
    text = " ".join(error.format_message().split()).rstrip(".?")
    end = "?" if "Did you mean" in text else "."
    return f"{text}{end} {where} --help shows how it is typed."


def _lack(error: BaseException) -> str | None:
    """Return what the machine lacks, when that is what went wrong."""
    if isinstance(error, MemoryError):
        return f"Memory ran out: {error or 'no more is to be had'}."
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"{FULL[error.errno]}: {error.filename or error}. Free some space, or write elsewhere."
        )
    return None


def _bug(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "nemoalign" in frame.filename] or list(frames)
    where = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    first = (str(error).strip() or "no message").splitlines()[0]
    return (
        f"This is a bug in {PROGRAM}: {type(error).__name__}: {first}{where}. "
        "Run it again with -v for the traceback, and report that."
    )


def _fail(arguments: Sequence[str], message: str, kind: str, code: int, detail: str) -> int:
    """Say what went wrong, on stderr and with --json on stdout too; return the exit code."""
    if report_failure(message, code, kind, detail, os.environ):
        return code
    from nemoalign.cli import show

    if detail and _asks(arguments, "-v", "--verbose"):
        sys.stderr.write(f"{detail.rstrip()}\n")
    show.failure(message, is_error=code not in (STOPPED, INTERRUPTED))
    if _asks(arguments, "", "--json"):
        show.document({"error": {"kind": kind, "exit_code": code, "message": message}})
    return code


def _asks(arguments: Sequence[str], short: str, long: str) -> bool:
    return any(argument in (short, long) for argument in arguments if argument)
