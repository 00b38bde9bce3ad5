"""Answers of the real command are transformers' own, and end where they should; layouts: test_generate."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from nemoalign.data.prompts import Prompt
from nemoalign.run.answer import _Writer
from nemoalign.train.stopping import Requests
from tests.commands import tiny

QUESTIONS = ["What does the cat say?", "What does the dog say 3 times?", "Why?"]
NEW = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("answers")
    tiny.make_llama(root / "hf")
    tiny.write_rows(root / "prompts.jsonl", [{"messages": [{"role": "user", "content": q}]} for q in QUESTIONS])  # fmt: skip
    return root


def theirs(made: Path) -> list[str]:
    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(made / "hf"),
        AutoTokenizer.from_pretrained(made / "hf"),
    )
    found = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        whole = model.generate(
            torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        found.append(tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True))
    return found


@pytest.mark.slow
def test_answers_are_transformers_and_come_in_order_from_two_replicas(made, tmp_path) -> None:
    expected = theirs(made)
    shared = ["generate", "--ckpt", made / "hf", "--precision", "fp32", "--max-new-tokens", NEW]
    file = tmp_path / "answers.jsonl"
    told = tiny.quickly(
        *shared, "--data", made / "prompts.jsonl", "--devices", 2, "-o", file, "--json"
    )
    assert json.loads(told)["count"] == 3
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["response"] for line in lines] == expected
    assert [line["source"].rpartition(" ")[2] for line in lines] == ["1", "2", "3"]
    typed = [word for question in QUESTIONS for word in ("--prompt", question)]
    told = tiny.quickly(*shared, *typed, "--json")
    assert [one["response"] for one in json.loads(told)["texts"]] == expected
    again = [*shared, "--data", made / "prompts.jsonl", "-o", file]
    assert "--overwrite" in tiny.quickly(*again, talk=True, code=5)


@pytest.mark.slow
def test_a_single_answer_alone_goes_to_standard_output(made) -> None:
    shared = ["generate", "--ckpt", made / "hf", "--precision", "fp32", "--max-new-tokens", NEW]
    assert tiny.quickly(*shared, "-p", QUESTIONS[0]) == theirs(made)[0] + "\n"


@pytest.mark.slow
def test_a_stop_leaves_no_file_and_says_so(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Requests, "pending", lambda _: [1.0, 1.0, 0.0])
    command = ["generate", "--ckpt", made / "hf", "--data", made / "prompts.jsonl", "-o", tmp_path / "a.jsonl"]  # fmt: skip
    said = tiny.quickly(*command, talk=True, code=130)
    assert "while answering; no file was written. The same command starts again." in said
    assert not list(tmp_path.iterdir())


class Letters:
    """One letter a token; the last makes no character alone."""

    def decode(self, ids) -> str:
        return "".join("abcdef\N{REPLACEMENT CHARACTER}"[i] for i in ids)


def test_what_is_shown_is_never_taken_back_and_ends_before_a_text_that_stops() -> None:
    shown: list[str] = []
    writer = _Writer(Letters(), ["de"], shown.append)
    ended = [writer.has_ended([0, 1, 2, 3, 4][: count + 1]) for count in range(5)]
    assert ended == [False, False, False, False, True]
    assert "".join(shown) == "abc"
    assert all("d" not in part for part in shown), "a text that may stop it is held back"


def test_a_character_is_shown_when_it_is_whole() -> None:
    shown: list[str] = []
    writer = _Writer(Letters(), [], shown.append)
    assert not writer.has_ended([0, 6])
    assert shown == []
    assert not writer.has_ended([0, 1])
    assert shown == ["ab"]


@pytest.mark.parametrize(
    ("ids", "response", "is_finished"),
    [
        ([0, 1, 5], "ab", True),
        ([0, 3, 4], "a", True),
        ([0, 1], "ab", False),
        ([], "", False),
    ],
    ids=["an end token", "a text that stops it", "out of room", "no room at all"],
)
def test_an_answer_is_finished_only_by_its_end(ids, response, is_finished) -> None:
    prompt = Prompt((0,), frozenset({5}), "--prompt 1")
    line = _Writer(Letters(), ["de"], None).answer(prompt, ids)
    assert (line["response"], line["finished"]) == (response, is_finished)
