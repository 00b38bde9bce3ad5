"""reshard through the real program: flags arrive, the report is shown, mistakes have codes."""

import json
from pathlib import Path

import pytest

from tests.cli.running import run

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
RANKS = FIXTURES / "gpt_tp2pp2_ranks.nemo"


def test_one_line_says_what_was_written_and_inspect_finds_it(tmp_path):
    target = tmp_path / "m.nemo"
    ended = run("reshard", RANKS, "-o", target, "--tp", 1, "--pp", 4)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{target}: ")
    assert "52 tensors, verified by hash" in ended.out
    assert {"torch", "megatron", "transformers"} & ended.modules == set()
    assert "per-rank TP1 PP4" in run("inspect", target).out


def test_json_prints_the_whole_report(tmp_path):
    target = tmp_path / "m.nemo"
    command = ["reshard", FIXTURES / "hf_llama", "-o", target, "--tp", 2, "--format", "ranks"]
    report = json.loads(run(*command, "--json", "--verify", "none").out)
    assert report["verified"] == "none"
    assert len(report["tensors"]) == 27


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--tp", "4"], 2, "use --tp 1 or 2"),
        (["--tp", "1", "--pp", "3"], 2, "use --pp 1, 2 or 4"),
        ([], 2, "--tp"),
        (["--tp", "none"], 2, "--tp"),
        (["--tp", "2", "--pp", "2", "--vp", "2"], 2, "--format dist"),
        (["--tp", "2", "--with-optimizer"], 4, "has no optimizer state"),
    ],
)
def test_mistakes_have_a_code_and_say_what_to_type(words, code, says, tmp_path):
    ended = run("reshard", RANKS, "-o", tmp_path / "m.nemo", *words)
    assert (ended.code, ended.out) == (code, "")
    assert says in " ".join(ended.err.split())
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_needs_overwrite(tmp_path):
    target = tmp_path / "m.nemo"
    target.write_text("precious")
    assert run("reshard", RANKS, "-o", target, "--tp", 1).code == 5
    assert target.read_text() == "precious"
    assert run("reshard", RANKS, "-o", target, "--tp", 1, "--overwrite").code == 0
