"""Prompts are written as transformers or NeMo's rules write them, whatever row they come in."""

import pytest
from transformers import AutoTokenizer

from nemoalign.data.encoder import SftSettings
from nemoalign.data.prompts import read_prompts
from nemoalign.data.tokenizer_hf import load_hf
from nemoalign.errors import DataError
from tests.data.tiny import TALK, save_hf_tokenizer, write_jsonl

SETTINGS = SftSettings(max_seq_length=200)
USER = {"role": "user", "content": "What is two plus two?"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = save_hf_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return load_hf(files, {}), AutoTokenizer.from_pretrained(folder)


def text_of(pair, tmp_path, row, settings=SETTINGS) -> str:
    (prompt,) = read_prompts(write_jsonl(tmp_path / "p.jsonl", [row]), pair[0], settings)
    assert prompt.stop_ids >= {pair[0].eos_id}
    return pair[0].decode(prompt.ids)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": TALK}, TALK[:-1]),
        ({"messages": TALK[:2]}, TALK[:2]),
        ({"instruction": USER["content"]}, [USER]),
        ({"conversations": [{"from": "human", "value": USER["content"]}]}, [USER]),
    ],
)
def test_conversations_end_where_the_answer_begins(pair, tmp_path, row, messages):
    theirs = pair[1].apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text_of(pair, tmp_path, row) == theirs


def test_prompt_templates_end_before_the_answers_field(pair, tmp_path):
    settings = SftSettings(max_seq_length=200, prompt_template="Q: {input}\nA: {output}")
    for row in ({"input": "Two?"}, {"input": " Two? ", "output": "Four"}, {"prompt": "Two?"}):
        assert text_of(pair, tmp_path, row, settings) == "Q: Two?\nA:"


def test_nemos_turns_end_with_the_speakers_name_and_stop_at_the_next_turn(pair, tmp_path):
    turns = [{"from": "User", "value": "Hi"}, {"from": "Bot", "value": "Ho"}]
    row = {"system": "S", "mask": "User", "conversations": turns}
    assert text_of(pair, tmp_path, row) == "\x00System\nS\n\x11User\nHi\n\x11Bot\n"
    row["conversations"] = turns[:1]
    assert text_of(pair, tmp_path, row) == "\x00System\nS\n\x11User\nHi\n\x11Assistant\n"
    (prompt,) = read_prompts(tmp_path / "p.jsonl", pair[0], SETTINGS)
    assert prompt.stop_ids == {pair[0].eos_id, *pair[0].encode("\x11")}


def test_a_template_that_ends_turns_otherwise_is_heard(pair, tmp_path):
    folder = save_hf_tokenizer(
        tmp_path / "t",
        "{% for m in messages %}{{ m['content'] + '<|endoftext|>\n' }}{% endfor %}",
    )
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    tokenizer = load_hf(files, {})
    data = write_jsonl(tmp_path / "p.jsonl", [{"messages": [USER]}])
    (prompt,) = read_prompts(data, tokenizer, SETTINGS)
    assert prompt.stop_ids == {tokenizer.eos_id, *tokenizer.encode("<|endoftext|>")}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"unknown": 1}, "no known form"),
        ({"input": "long " * 300}, "fewer than the 200 of --seq-len"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no message before the answer"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_place(pair, tmp_path, row, says):
    data = write_jsonl(tmp_path / "p.jsonl", [{"input": "fine"}, row])
    with pytest.raises(DataError, match=rf"p\.jsonl.*2.*{says}"):
        read_prompts(data, pair[0], SETTINGS)
