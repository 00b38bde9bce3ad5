"""The inspect command through the real program, on archives that NeMo wrote."""

import json
import tarfile
from pathlib import Path

import pytest

from nemoalign.cli.inspect import with_pattern
from tests.cli.running import run

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CHAT = FIXTURES / "chatsft_tp1_file.nemo"
GPT = FIXTURES / "gpt_tp2pp2_ranks.nemo"


def test_a_person_sees_what_it_is_without_torch():
    ended = run("inspect", GPT)
    assert (ended.code, ended.err) == (0, "")
    for words in ("gpt", "4 layers", "519 in 768 rows", "learned_absolute", "TP2 PP2", "158,784"):
        assert words in ended.out
    assert {
        "torch",
        "transformers",
        "megatron",
        "sentencepiece",
        "pydantic",
    } & ended.modules == set()


def test_a_script_gets_json():
    report = json.loads(run("inspect", CHAT, "--json").out)
    assert report["sizes"]["layers"] == 4
    assert report["prompt_template"] == "{input} {output}"
    assert report["tokenizer"]["library"] == "sentencepiece"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.sched.min_lr", "2e-05"),
        ("activation", "fast-swiglu"),
        ("data.chat_prompt_tokens.turn_start", "<extra_id_1>"),
        ("optim.betas", "[0.9, 0.98]"),
    ],
)
def test_one_value_is_printed_bare(key, value):
    assert run("inspect", CHAT, "-k", key).out == f"{value}\n"


def test_an_unknown_key_is_answered_with_the_nearest():
    ended = run("inspect", CHAT, "-k", "num_layer")
    assert ended.code == 2
    assert "num_layers" in ended.err


def test_the_template_is_printed_as_it_is_used():
    shown = run("inspect", CHAT, "--template").out
    assert "<extra_id_0>System" in shown
    assert "<extra_id_1>User" in shown
    told = json.loads(run("inspect", CHAT, "--template", "--json").out)
    assert told["template"] == shown.removesuffix("\n")
    assert told["from"] == "data.chat_prompt_tokens"
    assert told["jinja"].startswith("{% set system = messages[0]['content']")


def test_tensors_are_listed_with_shape_and_type():
    lines = run("inspect", CHAT, "--tensors", "*linear_qkv.weight").out.splitlines()
    assert lines[0].split() == ["name", "shape", "type"]
    assert len(lines) == 5
    assert lines[1].endswith("128 x 64  float32")
    everything = run("inspect", "--tensors", CHAT).out.splitlines()
    assert len(everything) == len(run("inspect", CHAT, "--tensors").out.splitlines()) > 20


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["m", "--tensors"], ["m", "--tensors", "*"]),
        (["m", "--tensors", "--json"], ["m", "--tensors", "*", "--json"]),
        (["--tensors", "m"], ["--tensors", "*", "m"]),
        (["m", "--tensors", "*qkv*"], ["m", "--tensors", "*qkv*"]),
        (["--tensors", "*qkv*", "m"], ["--tensors", "*qkv*", "m"]),
        (["-k", "x", "--tensors", "m"], ["-k", "x", "--tensors", "*", "m"]),
        (["m"], ["m"]),
    ],
)
def test_tensors_may_stand_without_a_pattern(typed, meant):
    assert with_pattern(["inspect", *typed]) == ["inspect", *meant]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    empty = tmp_path / "x.nemo"
    with tarfile.open(empty, "w"):
        pass
    (tmp_path / "text.nemo").write_text("hello")
    (tmp_path / "cut.nemo").write_bytes(CHAT.read_bytes()[:200_000])
    for path in (empty, tmp_path / "text.nemo", tmp_path / "cut.nemo", tmp_path):
        ended = run("inspect", path)
        assert ended.code == 3, path
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
