import pytest

from nemoalign.data.conversations import (
    alpaca_row,
    is_nemo_chat,
    is_sharegpt,
    nemo_chat_row,
    sharegpt_row,
)
from nemoalign.data.rows import Turn
from nemoalign.errors import DataError

HUMAN = {"from": "human", "value": "a?"}
GPT = {"from": "gpt", "value": "b."}


def test_sharegpt_turns_become_messages():
    row = {"system": "s", "conversations": [HUMAN, {**GPT, "weight": 1}], "tools": []}
    assert is_sharegpt(row)
    assert not is_nemo_chat(row)
    assert [(m["role"], m["content"]) for m in sharegpt_row(row).messages] == [
        ("system", "s"),
        ("user", "a?"),
        ("assistant", "b."),
    ]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"conversations": []}, "no list of turns"),
        ({"conversations": [{"value": "x"}]}, 'turn 0 without a "from"'),
        ({"conversations": [HUMAN, {"from": "Bob", "value": "x"}]}, 'turn 1 from "Bob"'),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, '"value" of turn 1'),
        ({"conversations": [HUMAN]}, "no assistant message"),
    ],
)
def test_a_bad_sharegpt_row_is_said(record, words):
    with pytest.raises(DataError, match=words):
        sharegpt_row(record)


def test_alpaca_rows_become_a_question_and_its_answer():
    row = alpaca_row({"instruction": "Add", "input": "1 1", "output": "2"})
    assert [m["content"] for m in row.messages] == ["Add\n\n1 1", "2"]
    assert alpaca_row({"instruction": "Hi", "input": "", "output": "Ho"}).messages[0] == {
        "role": "user",
        "content": "Hi",
    }
    with pytest.raises(DataError, match='empty "output"'):
        alpaca_row({"instruction": "Hi", "output": ""})


def test_nemos_rows_keep_speakers_labels_and_kind():
    record = {
        "system": None,
        "mask": "User",
        "type": "VALUE_TO_TEXT",
        "conversations": [
            {"from": "User", "value": "a", "label": None},
            {"from": "Assistant", "value": "b", "label": "q:4"},
        ],
    }
    row = nemo_chat_row(record)
    assert row.turns == [Turn("User", "a", None), Turn("Assistant", "b", "q:4")]
    assert (row.system, row.masked, row.kind) == ("", "User", "VALUE_TO_TEXT")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "OTHER"}, '"OTHER" as "type"'),
        ({"mask": "User,Assistant"}, "masks every speaker"),
        ({"mask": 3}, '"mask"'),
        ({"conversations": [{"from": "User", "value": "a", "label": 4}]}, '"label" of turn 0'),
    ],
)
def test_a_bad_row_of_nemos_is_said(change, words):
    turns = [{"from": "User", "value": "a"}, {"from": "Assistant", "value": "b"}]
    with pytest.raises(DataError, match=words):
        nemo_chat_row({"mask": "User", "conversations": turns} | change)
