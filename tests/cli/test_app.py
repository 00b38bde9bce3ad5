"""The program as a whole: instant help, and every mistake answered in one paragraph with its exit code."""

import json
import subprocess
import sys

import pytest

from nemoalign.cli import app
from nemoalign.cli.app import COMMANDS
from nemoalign.errors import ConflictError
from tests.cli.running import HEAVY, PROGRAM, run

NAMES = [command.name for command in COMMANDS]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in NAMES)])
def test_help_imports_nothing_heavy_and_is_instant(arguments):
    ended = run(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: nemoalign")
    assert ended.modules & HEAVY == set()
    # The import trace itself costs time; without it a page takes about 0.13 s.
    assert min(ended.cpu_seconds, *(run(*arguments).cpu_seconds for _ in range(2))) < 0.4


def test_the_first_page_lists_every_command_and_exit_code():
    page = run().out
    assert page == run("-h").out
    for name in NAMES:
        assert f"  {name} " in page
    for code in ("0 done", "2 wrong", "8 bad data", "75 stopped", "130 interrupted"):
        assert code in page


def test_version():
    ended = run("--version")
    assert ended.out == "nemoalign 0.1.0\n"
    assert ended.modules & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sft", "--betaa", "3"], "nemoalign sft has no flag --betaa. nemoalign sft --help lists"),
        (["sft", "--max-step", "3"], "nemoalign sft has no flag --max-step. Did you mean --max-st"),
        (["sft", "--no-shufle"], "Did you mean --no-shuffle?"),
        (["sft", "--lr"], "Option '--lr' requires an argument. nemoalign sft --help"),
        (
            ["convert", "--dtipe", "x"],
            "nemoalign convert has no flag --dtipe. Did you mean --dtype?",
        ),
        (["convert"], "SRC is missing. Type: nemoalign convert "),
        (["convert", "x"], "-o DST is missing"),
        (["convert", "x", "-o", "y", "z"], "unexpected extra argument"),
        (
            ["convert", "x", "-o", "y", "--dtype", "fp8"],
            "--dtype fp8 does not work: it must be one",
        ),
        (["exprot", "x"], "No such command 'exprot'. Did you mean 'export'?"),
        (["--hlep"], "nemoalign has no flag --hlep. Did you mean --help?"),
    ],
)
def test_a_wrong_command_line_gets_one_paragraph_quickly(arguments, says):
    ended = run(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert says in ended.err
    assert ended.modules & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["sft"], 2, "nemoalign sft --ckpt model.nemo --data train.jsonl"),
        (["sft", "--gbs", "0"], 2, "--gbs 0 does not work"),
        (["sft", "--lr", "fast"], 2, "--lr fast does not work: model.optim.lr must be a number"),
        (["sft", "-s", "model.optim.lrr=1"], 2, "Did you mean model.optim.lr (--lr)?"),
        (["sft", "x"], 2, "--set takes KEY=VALUE, not 'x'"),
        (["sft", "-c", "none.yaml"], 3, "There is no file none.yaml"),
        (["inspect", "none.nemo"], 3, "none.nemo does not exist"),
        (["convert", "none.nemo", "-o", "x.nemo"], 3, "none.nemo does not exist"),
        (["sft", "--ckpt", "none.nemo", "--data", "t"], 3, "none.nemo does not exist"),
    ],
)
def test_every_mistake_has_its_sentence_and_exit_code(arguments, code, says, tmp_path):
    ended = run(*arguments, cwd=tmp_path)
    assert ended.code == code
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert "torch" not in ended.modules


def test_json_puts_the_error_on_stdout_too(tmp_path):
    ended = run("inspect", "none.nemo", "--json", cwd=tmp_path)
    error = json.loads(ended.out)["error"]
    assert (error["kind"], error["exit_code"]) == ("SourceError", 3)
    assert ended.err == f"error: {error['message']}\n"


def test_verbose_adds_the_traceback(tmp_path):
    quiet = run("inspect", "none.nemo", cwd=tmp_path)
    loud = run("inspect", "none.nemo", "-v", cwd=tmp_path)
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err
    assert loud.err.endswith(quiet.err)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyError("x"), 1, "This is a bug in nemoalign: KeyError: 'x'"),
        (FileNotFoundError(2, "gone", "x"), 1, "This is a bug"),
        (OSError(28, "No space left on device", "m.nemo"), 7, "The disk is full: m.nemo"),
        (OSError(27, "File too large", "m.nemo"), 7, "No file may be that large here: m.nemo"),
        (MemoryError(), 7, "Memory ran out"),
        (ConflictError("m.nemo exists."), 5, "error: m.nemo exists.\n"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_what_escapes_a_command_becomes_a_sentence(error, code, says, capsys):
    def action():
        raise error

    assert app.boundary(action, ["inspect"]) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    program = subprocess.Popen(
        [*PROGRAM, "sft", "--print-config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait(30) == 0


def test_the_module_and_the_script_are_one_program():
    script = f"{sys.prefix}/bin/nemoalign"
    assert subprocess.check_output([script, "--version"]) == subprocess.check_output(
        [*PROGRAM, "--version"]
    )
