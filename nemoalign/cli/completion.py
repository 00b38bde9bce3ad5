"""Completions for bash, zsh and fish, written from the same table as the commands.

``python -m nemoalign.cli.completion DIRECTORY`` writes them; static files, so pressing Tab starts no
Python. They complete commands, flags, choices, paths, and the keys of ``--set``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemoalign.cli.flags import is_list
from nemoalign.cli.spec import CommandSpec
from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.fields import Entry

KEYED = "set"
"""The parameter whose values are KEY=VALUE."""
HEAD = "# Completion of nemoalign for {shell}. Written by `make completions`; do not edit."


def scripts(commands: Sequence[CommandSpec]) -> dict[str, str]:
    """Return file name -> completion script."""
    return {
        "nemoalign.bash": _bash(commands),
        "_nemoalign": _zsh(commands),
        "nemoalign.fish": _fish(commands),
    }


def write(directory: Path, commands: Sequence[CommandSpec]) -> None:
    """Write every script into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in scripts(commands).items():
        (directory / name).write_text(text, encoding="utf-8")


def _spellings(entry: Entry) -> list[str]:
    """Return every way to type a flag: ``-o``, ``--out``; ``--resume``, ``--no-resume``."""
    flags = str(entry.setting.flag).split("/")
    return [*([entry.setting.short] if entry.setting.short else []), *flags]


def _takes_value(entry: Entry) -> bool:
    return entry.type is not bool


def _keys(command: CommandSpec) -> list[str]:
    """Return the keys that ``--set`` takes in a command."""
    row = ALGORITHMS.get(command.name)
    return list(row.entries()) if row is not None else []


def _choices(entry: Entry) -> list[str]:
    return list(entry.setting.choices or ())


def _bash(commands: Sequence[CommandSpec]) -> str:
    names = " ".join(command.name for command in commands)
    return "\n".join(
        [
            HEAD.format(shell="bash"),
            "_nemoalign() {",
            '    local current="${COMP_WORDS[COMP_CWORD]}" flag="${COMP_WORDS[COMP_CWORD-1]}"',
            '    local command="" word words=""',
            "    COMPREPLY=()",
            "    # Bash cuts words at '='; --flag=val arrives as three of them.",
            '    if [[ $current == "=" ]]; then current=""',
            '    elif [[ $flag == "=" ]]; then flag="${COMP_WORDS[COMP_CWORD-2]}"; fi',
            '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
            f'        case "$word" in {names.replace(" ", "|")}) command="$word"; break;; esac',
            "    done",
            '    case "$command:$flag" in',
            *(line for command in commands for line in _bash_values(command)),
            "    esac",
            '    case "$command" in',
            f'        "") words="{names} --help --version";;',
            *(line for command in commands for line in _bash_words(command)),
            "    esac",
            '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi",
            "}",
            "complete -F _nemoalign nemoalign",
            "",
        ]
    )


def _bash_values(command: CommandSpec) -> Iterator[str]:
    """Yield the branches of the flags that take a value: what completes it."""
    branches: dict[str, list[str]] = {}
    for entry in filter(_takes_value, command.entries):
        patterns = [f"{command.name}:{name}" for name in _spellings(entry)]
        branches.setdefault(_bash_value(command, entry), []).extend(patterns)
    for body, patterns in branches.items():
        yield f"        {'|'.join(patterns)}) {body}return;;"


def _bash_value(command: CommandSpec, entry: Entry) -> str:
    """Return the shell code that completes one flag's value; nothing where no word is known."""
    kind = entry.setting.path_kind
    if kind is not None:
        action = f'compgen -{"d" if kind == "directory" else "f"} -- "$current"'
        return f"compopt -o filenames; mapfile -t COMPREPLY < <({action}); "
    if entry.key == KEYED:
        keys = " ".join(_keys(command))
        return f'compopt -o nospace; COMPREPLY=($(compgen -S = -W "{keys}" -- "$current")); '
    words = " ".join(_choices(entry))
    if words and is_list(entry):
        return (
            'local before=""; [[ $current == *,* ]] && before="${current%,*},"; '
            f'COMPREPLY=($(compgen -P "$before" -W "{words}" -- "${{current##*,}}")); '
        )
    return f'COMPREPLY=($(compgen -W "{words}" -- "$current")); ' if words else ""


def _bash_words(command: CommandSpec) -> Iterator[str]:
    """Yield the branch of one command: its flags, and its paths or keys."""
    names = [name for entry in command.entries for name in _spellings(entry)]
    yield f"        {command.name})"
    yield f'            if [[ $current == -* ]]; then words="{" ".join(names)} --help"'
    if command.positional.path_kind is not None:
        yield (
            "            else compopt -o filenames; "
            'mapfile -t COMPREPLY < <(compgen -f -- "$current"); return; fi;;'
        )
    else:
        yield f'            else words="{" ".join(f"{key}=" for key in _keys(command))}"; fi;;'


def _zsh(commands: Sequence[CommandSpec]) -> str:
    listed = [f"        {_quoted(f'{c.name}:{_plain(c.summary)}')}" for c in commands]
    return "\n".join(
        [
            "#compdef nemoalign",
            HEAD.format(shell="zsh"),
            "_nemoalign() {",
            "  local context state line curcontext=$curcontext",
            "  local -a commands=(",
            *listed,
            "  )",
            "  _arguments -C '(-h --help)'{-h,--help}'[show help]' '--version[show the version]' \\",
            "    '1: :->command' '*:: :->rest'",
            "  case $state in",
            "    command) _describe -t commands command commands;;",
            "    rest) case $line[1] in",
            *(line for command in commands for line in _zsh_command(command)),
            "    esac;;",
            "  esac",
            "}",
            *(line for command in commands for line in _zsh_keys(command)),
            '_nemoalign "$@"',
            "",
        ]
    )


def _zsh_command(command: CommandSpec) -> Iterator[str]:
    yield f"      {command.name}) _arguments -s \\"
    for entry in command.entries:
        for spec in _zsh_flag(command, entry):
            yield f"        {spec} \\"
    yield "        '(-h --help)'{-h,--help}'[show help]' \\"
    action = "_files" if command.positional.path_kind else f"_nemoalign_{command.name}_keys"
    star = "*" if command.positional.is_list else "1"
    yield f"        {_quoted(f'{star}:{command.positional.metavar}:{action}')};;"


def _zsh_flag(command: CommandSpec, entry: Entry) -> Iterator[str]:
    """Yield the ``_arguments`` specs of one flag."""
    names, text = _spellings(entry), _plain(entry.setting.help)
    together = "" if is_list(entry) else f"({' '.join(names)})"
    star = "*" if is_list(entry) else ""
    for name in names:
        if not _takes_value(entry):
            yield _quoted(f"{together}{name}[{text}]")
        else:
            equals = "=" if name.startswith("--") else "+"
            action = _zsh_action(command, entry)
            yield _quoted(f"{together}{star}{name}{equals}[{text}]:{_zsh_word(entry)}:{action}")


def _zsh_word(entry: Entry) -> str:
    return str(entry.setting.flag).partition("/")[0].lstrip("-")


def _zsh_action(command: CommandSpec, entry: Entry) -> str:
    kind = entry.setting.path_kind
    if kind is not None:
        return "_files -/" if kind == "directory" else "_files"
    if entry.key == KEYED:
        return f"_nemoalign_{command.name}_keys"
    if is_list(entry) and _choices(entry):
        return f"_values -s , {_zsh_word(entry)} {' '.join(_choices(entry))}"
    return f"({' '.join(_choices(entry))})" if _choices(entry) else " "


def _zsh_keys(command: CommandSpec) -> Iterator[str]:
    keys = _keys(command)
    if keys:
        yield f"_nemoalign_{command.name}_keys() {{ compadd -S = -- {' '.join(keys)} }}"


def _fish(commands: Sequence[CommandSpec]) -> str:
    lines = [HEAD.format(shell="fish"), "complete -c nemoalign -f"]
    start = "complete -c nemoalign -n __fish_use_subcommand"
    lines += [f"{start} -s h -l help -d 'Show help'", f"{start} -l version -d 'Show the version'"]
    for command in commands:
        lines.append(f"{start} -a {command.name} -d {_fish_quoted(command.summary)}")
    for command in commands:
        lines += _fish_command(command)
    return "\n".join([*lines, ""])


def _fish_command(command: CommandSpec) -> Iterator[str]:
    inside = f"complete -c nemoalign -n '__fish_seen_subcommand_from {command.name}'"
    keys = " ".join(f"{key}=" for key in _keys(command))
    yield f"{inside} -s h -l help -d 'Show help'"
    yield f"{inside} -F" if command.positional.path_kind else f"{inside} -a '{keys}'"
    for entry in command.entries:
        short = f" -s {entry.setting.short[1:]}" if entry.setting.short else ""
        words = f"-d {_fish_quoted(entry.setting.help)}"
        for name in str(entry.setting.flag).split("/"):
            values = _fish_values(entry, keys) if _takes_value(entry) else ""
            yield f"{inside}{short} -l {name[2:]}{values} {words}"
            short = ""


def _fish_values(entry: Entry, keys: str) -> str:
    kind = entry.setting.path_kind
    if kind is not None:
        return " -x -a '(__fish_complete_directories)'" if kind == "directory" else " -r -F"
    words = keys if entry.key == KEYED else " ".join(_choices(entry))
    if _choices(entry) and is_list(entry):
        words = f"(__fish_append , {words})"
    return f" -x -a '{words}'" if words else " -x"


def _plain(text: str) -> str:
    """Return text without what zsh reads as structure."""
    return text.rstrip(".").replace("[", "(").replace("]", ")").replace(":", ",")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.rstrip(".").replace("\\", "\\\\").replace("'", "\\'") + "'"


if __name__ == "__main__":
    from nemoalign.cli.app import COMMANDS

    write(Path(sys.argv[1]), COMMANDS)
