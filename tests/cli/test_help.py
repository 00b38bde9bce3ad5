"""Help pages: grouped by panel, narrow enough, and in colour only on a terminal."""

import os
import pty
import subprocess

import pytest

from nemoalign.cli.app import COMMANDS
from tests.cli.running import PROGRAM, run


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_page_shows_every_flag_under_its_panel(command):
    page = run(command.name, "--help").out
    assert "\x1b" not in page
    assert max(map(len, page.splitlines())) <= 100
    words = page.replace("/", " ").replace(",", " ").split()
    panels = {entry.setting.panel for entry in command.entries if entry.setting.panel}
    assert [panel for panel in panels if f"\n{panel}\n" not in page] == []
    for entry in command.entries:
        for name in str(entry.setting.flag).split("/"):
            assert name in words
    assert f"nemoalign {command.name} {command.example}" in page


def test_a_page_fits_a_narrow_terminal():
    page = run("convert", "--help", env={"COLUMNS": "60"}).out
    body = page.partition("Examples")[0]
    assert max(map(len, body.splitlines())) <= 60


@pytest.mark.parametrize(("no_color", "bold"), [("", True), ("1", False)])
def test_headings_are_bold_on_a_terminal_unless_no_color(no_color, bold):
    parent, child = pty.openpty()
    env = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
    program = subprocess.Popen([*PROGRAM, "convert", "--help"], stdout=child, env=env)
    os.close(child)
    drawn = b""
    while chunk := read(parent):
        drawn += chunk
    os.close(parent)
    assert program.wait() == 0
    assert (b"\x1b[1m" in drawn) is bold


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so when the other side of a terminal is closed
        return b""
