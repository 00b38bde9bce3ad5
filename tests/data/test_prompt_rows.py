"""Rows of any kind as prompts: without their answers, with all else that they say."""

import pytest

from nemoalign.data.encoder import SftSettings
from nemoalign.data.prompt_rows import PromptDataset, without_answer
from nemoalign.data.prompts import read_prompts
from nemoalign.data.templates import PromptTemplate
from nemoalign.errors import DataError
from tests.data.tiny import CharTokenizer, write_jsonl

TOKENIZER = CharTokenizer()
SETTINGS = SftSettings(max_seq_length=40)
TEMPLATE = SETTINGS.template()

USER = {"role": "user", "content": "Two?"}
BOT = {"role": "assistant", "content": "Four, and much more than that."}
NEMO = [{"from": "User", "value": "Two?"}, {"from": "Assistant", "value": "Four, I said."}]
ROWS = {
    "messages": ({"messages": [USER, BOT]}, {"messages": [USER]}),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Two?"}, {"from": "gpt", "value": "Four"}]},
        {"conversations": [{"from": "human", "value": "Two?"}]},
    ),
    "nemo": (
        {"system": "", "mask": "User", "conversations": NEMO},
        {"system": "", "mask": "User", "conversations": NEMO[:1]},
    ),
    "alpaca": ({"instruction": "Two?", "output": "Four"}, {"instruction": "Two?"}),
    "template": ({"input": "Two?", "output": "Four"}, {"input": "Two?"}),
    "completion": ({"prompt": "Two?", "completion": "Four"}, {"prompt": "Two?"}),
    "text": ({"text": "Two?", "output": "Four"}, {"text": "Two?"}),
    "pair": ({"prompt": "Two?", "chosen": "Four", "rejected": "Five"}, {"prompt": "Two?"}),
}


def dataset(tmp_path, rows, settings=SETTINGS, weight=1.0) -> PromptDataset:
    path = write_jsonl(tmp_path / "prompts.jsonl", rows)
    return PromptDataset([(path, weight)], TOKENIZER, settings)


def text(question) -> str:
    return TOKENIZER.decode(question.prompt.ids)


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_is_the_same_prompt_with_its_answer_and_without(tmp_path, kind) -> None:
    with_answer, without = ROWS[kind]
    rows = dataset(tmp_path, [with_answer, without])
    assert len(rows) == 2
    first, second = rows.question(0), rows.question(1)
    assert first.prompt.ids == second.prompt.ids
    assert first.prompt.stop_ids == second.prompt.stop_ids >= {TOKENIZER.eos_id}
    assert "Two?" in text(first)
    assert "Four" not in text(first)
    (expected,) = read_prompts(write_jsonl(tmp_path / "p.jsonl", [without]), TOKENIZER, SETTINGS)
    assert first.prompt.ids == expected.ids
    assert rows.length(0) == rows.length(1)


@pytest.mark.parametrize("kind", ROWS)
def test_only_the_answer_is_left_away(kind) -> None:
    record, rest = ({**row, "kind": "sum"} for row in ROWS[kind])
    before = repr(record)
    found = without_answer(record, TEMPLATE)
    if kind != "nemo":
        assert rest.items() <= found.items()
    if kind not in ("pair", "nemo"):
        assert found == rest
    assert repr(record) == before


def test_earlier_answers_are_part_of_the_prompt() -> None:
    talk = [USER, BOT, USER]
    assert without_answer({"messages": talk}, TEMPLATE) == {"messages": talk}
    again = [*NEMO, NEMO[0]]
    row = {"system": "", "mask": "User", "conversations": again}
    assert without_answer(row, TEMPLATE) == row


def test_nemos_prompts_end_with_who_speaks_next_and_as_whom(tmp_path) -> None:
    labelled = {"from": "A careful speaker", "value": "Four " * 40, "label": "quality:4"}
    row = {
        "system": "",
        "mask": "User",
        "type": "VALUE_TO_TEXT",
        "conversations": [NEMO[0], labelled],
    }
    settings = SftSettings(max_seq_length=80)
    (question,) = (dataset(tmp_path, [row], settings).question(0),)
    assert text(question).endswith("Two?\n\x11A careful speaker\n\x12quality:4\n")
    assert without_answer(row, TEMPLATE)["conversations"][0] == NEMO[0]


@pytest.mark.parametrize("speaker", ["gpt", "chatgpt", "bard", "assistant"])
def test_sharegpts_speakers_are_all_left_away(speaker) -> None:
    turns = [{"from": "human", "value": "Two?"}, {"from": speaker, "value": "Four"}]
    assert without_answer({"conversations": turns}, TEMPLATE) == {"conversations": turns[:1]}


@pytest.mark.parametrize("wrong", [{"messages": ["Two?"]}, {"conversations": ["Two?"]}, {"messages": [1]}])  # fmt: skip
def test_what_is_no_conversation_is_named_with_its_place(tmp_path, wrong) -> None:
    with pytest.raises(DataError, match=r"prompts\.jsonl line 1 "):
        dataset(tmp_path, [wrong])


def test_a_question_brings_all_that_its_row_says(tmp_path) -> None:
    rows = [{"input": f"{n}?", "output": "x", "kind": n, "more": [n]} for n in range(3)]
    found = dataset(tmp_path, rows)
    for n in range(3):
        question = found.question(n)
        assert question.index == n
        assert question.record == rows[n]
        assert question.prompt.source == f"prompts.jsonl line {n + 1}"


def test_a_row_is_asked_as_often_as_its_file_is_weighted(tmp_path) -> None:
    found = dataset(tmp_path, [{"input": "a?"}, {"input": "b?"}], weight=2.0)
    assert [text(found.question(n)) for n in range(4)] == ["a?", "b?", "a?", "b?"]
    assert [found.question(n).index for n in range(4)] == [0, 1, 2, 3]


def test_prompts_that_leave_no_room_are_dropped_and_long_answers_are_no_matter(tmp_path) -> None:
    rows = [
        {"input": "short?", "output": "long " * 40},
        {"input": "long " * 20},
        {"input": "fits?"},
    ]
    found = dataset(tmp_path, rows)
    assert [text(found.question(n)) for n in range(len(found))] == ["short?", "fits?"]
    assert found.question(1).prompt.source == "prompts.jsonl line 3"
    with pytest.raises(DataError, match="No row of the train data can be used"):
        dataset(tmp_path, rows[1:2])


def test_the_longest_prompt_that_is_kept_leaves_room_for_itself(tmp_path) -> None:
    """Whatever the index counts of a stand-in for an answer, what is kept can be asked."""
    found = dataset(tmp_path, [{"input": "x" * length} for length in range(30, 45)])
    lengths = [len(found.question(n).prompt.ids) for n in range(len(found))]
    assert lengths == list(range(30, max(lengths) + 1))
    assert SETTINGS.max_seq_length - 3 <= max(lengths) < SETTINGS.max_seq_length


def test_templates_of_other_fields_lose_their_own_answer() -> None:
    template = PromptTemplate.parse("Q: {question}\nA: {answer}")
    row = {"question": "Two?", "answer": "Four", "output": "kept"}
    assert without_answer(row, template) == {"question": "Two?", "output": "kept"}
