"""Completions are fresh, and complete in the real shells."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nemoalign.cli.app import COMMANDS
from nemoalign.cli.completion import scripts, write

DIRECTORY = Path(__file__).resolve().parents[2] / "completions"
SHELLS = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]


def test_the_committed_scripts_are_fresh(tmp_path):
    write(tmp_path, COMMANDS)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == scripts(COMMANDS)
    committed = {path.name: path.read_text() for path in DIRECTORY.iterdir()}
    assert committed == written, "make completions"


def in_bash(line: str, cwd: Path) -> str:
    """Return what bash offers at the end of ``line``."""
    words = line.replace("=", " = ") + (' ""' if line.endswith(" ") else "")
    script = f"""
        source {DIRECTORY}/nemoalign.bash
        compopt() {{ :; }}  # exists only while a person completes
        COMP_WORDS=({words})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _nemoalign
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return subprocess.check_output(["bash", "-c", script], text=True, cwd=cwd)


def in_fish(line: str, cwd: Path) -> str:
    """Return what fish offers at the end of ``line``."""
    script = f"source {DIRECTORY}/nemoalign.fish; complete -C '{line}'"
    return subprocess.check_output(["fish", "--no-config", "-c", script], text=True, cwd=cwd)


class Zsh:
    """An interactive zsh on a terminal: what it offers is only to be seen on its screen."""

    def __init__(self, cwd: Path) -> None:
        self.child, self.screen = pty.fork()
        if self.child == 0:
            os.chdir(cwd)
            environ = {**os.environ, "TERM": "dumb", "COLUMNS": "1000"}
            os.execvpe("zsh", ["zsh", "-f", "-i"], environ)
        setup = (
            f"fpath=({DIRECTORY} $fpath); autoload -U compinit; compinit -u -D",
            "unsetopt list_ambiguous; LISTMAX=0; PS1=",
            'show() { zle -I; print -r -- "<$BUFFER>" }; zle -N show; bindkey "^X" show',
            "print READY-$((1 + 1))",
        )
        os.write(self.screen, "".join(f"{line}\n" for line in setup).encode())
        self.read_until({"READY-2"})

    def offers(self, line: str, wanted: set[str]) -> str:
        """Return what the screen shows after ``line`` and Tab, at the latest once all is there."""
        shown = ""
        for _ in range(3):  # a busy machine may show the line again before the list is made
            os.write(self.screen, f"\x15{line}\t".encode())  # Ctrl-U empties the line first
            shown = self.read_until(wanted, ask=b"\x18", seconds=8)
            if all(word in shown for word in wanted):
                break
        return shown

    def read_until(self, wanted: set[str], ask: bytes = b"", seconds: float = 20) -> str:
        """Read the screen until it shows every wanted word; ``ask`` makes it show the line again."""
        shown = ""
        deadline = time.monotonic() + seconds
        while not all(word in shown for word in wanted) and time.monotonic() < deadline:
            if select.select([self.screen], [], [], 0.2)[0]:
                shown += os.read(self.screen, 65536).decode(errors="replace")
            elif ask:
                os.write(self.screen, ask)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x00-\x08\r]", "", shown)

    def close(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.screen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    (folder / "model.nemo").touch()
    (folder / "morning.jsonl").touch()
    (folder / "more").mkdir()
    return folder


@pytest.fixture(scope="module")
def offers(folder):
    """Return a function of shell, line and wanted words that says what the shell offers."""
    screens: list[Zsh] = []

    def ask(shell: str, line: str, wanted: set[str]) -> str:
        if shell != "zsh":
            return {"bash": in_bash, "fish": in_fish}[shell](line, folder)
        if not screens:
            screens.append(Zsh(folder))
        return screens[0].offers(line, wanted)

    yield ask
    for screen in screens:
        screen.close()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("nemoalign con", {"convert"}, "export"),
        ("nemoalign sft --max-", {"--max-steps", "--max-time"}, "--mbs"),
        ("nemoalign sft --schedule ", {"cosine", "linear", "constant"}, "bf16"),
        ("nemoalign convert --dtype=f", {"fp16", "fp32"}, "keep"),
        ("nemoalign convert mo", {"model.nemo", "more"}, "--merge"),
        ("nemoalign sft --data mo", {"morning.jsonl"}, "--max-steps"),
        ("nemoalign sft -o ", {"more"}, "model.nemo"),
        ("nemoalign sft --set model.optim.w", {"model.optim.weight_decay="}, "model.optim.lr"),
        ("nemoalign sft model.optim.w", {"model.optim.weight_decay="}, "model.optim.lr"),
        ("nemoalign sft --lora-targets mlp,attention_q", {"attention_qkv"}, "cosine"),
    ],
)
def test_a_shell_offers_what_fits(shell, line, wanted, unwanted, offers):
    offered = offers(shell, line, wanted)
    assert {word for word in wanted if word not in offered} == set()
    assert unwanted not in offered
