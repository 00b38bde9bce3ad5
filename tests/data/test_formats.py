import pytest

from nemoalign.data.formats import check_rows, choose_schema, read_rows
from nemoalign.data.jsonl import JsonlFile
from nemoalign.data.rows import ChatRow, PromptRow
from nemoalign.data.templates import DEFAULT_TEMPLATE, PromptTemplate
from nemoalign.errors import ConfigError, DataError
from tests.data.tiny import write_jsonl

DEFAULT = PromptTemplate.parse(DEFAULT_TEMPLATE)
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}
GPT = {"from": "gpt", "value": "b"}
ASSISTANT = {"from": "Assistant", "value": "b"}


def opened(tmp_path, *rows):
    return JsonlFile(write_jsonl(tmp_path / "train.jsonl", rows))


def read(tmp_path, *rows, template=DEFAULT, wanted="auto"):
    file = opened(tmp_path, *rows)
    schema = choose_schema(file, template, wanted)
    check_rows(file, schema, range(len(file)))
    return schema.name, read_rows(file, schema, range(len(file)))


def test_rows_with_the_templates_fields_are_prompt_and_response(tmp_path):
    row = {"q": "2+2?", "a": "4", "id": 7}
    name, rows = read(tmp_path, row, template=PromptTemplate.parse("{q} {a}"))
    assert (name, rows) == ("prompt-response", [PromptRow({"q": "2+2?", "a": "4"})])


@pytest.mark.parametrize("template", ["{input} {output}", "Q {q} A {a}"])
def test_prompt_and_completion_fill_a_template_of_two_fields(tmp_path, template):
    parsed = PromptTemplate.parse(template)
    name, rows = read(tmp_path, {"completion": "4", "prompt": "2+2?"}, template=parsed)
    assert name == "prompt-completion"
    assert rows == [PromptRow(dict(zip(parsed.keys, ["2+2?", "4"], strict=True)))]


def test_messages_are_a_conversation_and_text_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {"messages": [{"role": "user", "content": parts}, ANSWER], "tools": tools}
    name, rows = read(tmp_path, row)
    assert (name, rows) == ("messages", [ChatRow([USER, ANSWER], tools)])


def test_a_tool_call_needs_no_content_and_keeps_its_fields(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    _, rows = read(tmp_path, {"messages": [USER, call]})
    assert rows[0].messages[1] == {**call, "content": ""}


def test_a_schema_may_be_named(tmp_path):
    row = {"messages": [USER, ANSWER], "input": "i", "output": "o"}
    assert read(tmp_path, row)[0] == "messages"
    assert read(tmp_path, row, wanted="prompt-response")[0] == "prompt-response"
    with pytest.raises(ConfigError, match=r"messages, .*, prompt-response"):
        read(tmp_path, row, wanted="csv")


def test_fields_nobody_knows_are_listed_with_what_is_known(tmp_path):
    with pytest.raises(
        DataError, match=r'line 1 has "question" and "reply".*"messages", .* or "input" and'
    ):
        read(tmp_path, {"question": "q", "reply": "r"})


def test_alpaca_rows_do_not_lose_their_instruction(tmp_path):
    row = {"instruction": "Add", "input": "1 1", "output": "2"}
    assert read(tmp_path, row)[0] == "alpaca"
    named = PromptTemplate.parse("{instruction} {input} {output}")
    assert read(tmp_path, row, template=named)[0] == "prompt-response"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"input_ids": [1, 2], "messages": []}, "tokens"),
        ({"conversations": [{"from": "human", "value": "a"}, GPT]}, "sharegpt"),
        ({"conversations": [{"from": "User", "value": "a"}, ASSISTANT], "system": ""}, "nemo-chat"),
        ({"conversations": [{"from": "user", "value": "a"}, GPT], "mask": "user"}, "nemo-chat"),
    ],
)
def test_a_schema_is_told_by_its_first_row(tmp_path, row, name):
    assert choose_schema(opened(tmp_path, row), DEFAULT).name == name


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input": "i"}, 'has no "output" field; it has "input"'),
        ({}, "it has no fields"),
        ({"input": "i", "output": " \n"}, 'has an empty "output"'),
        ({"input": 3, "output": "o"}, 'has a number as "input", which must be text'),
        ({"input": "i", "output": "\ud83d"}, "surrogate"),
    ],
)
def test_a_bad_prompt_row_is_named_with_its_line(tmp_path, row, words):
    good = {"input": "i", "output": "o"}
    with pytest.raises(DataError, match=r"^train\.jsonl line 2 .*" + words):
        read(tmp_path, good, row, good)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, "no list of messages"),
        ({"messages": "hi"}, "no list of messages"),
        ({"messages": [USER]}, "no assistant message"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "empty assistant message"),
        ({"messages": [USER, {"content": "x"}]}, 'message 1 without a "role"'),
        ({"messages": [USER, {"role": "assistant"}]}, 'null as "content" of message 1'),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "not text"),
        ({"messages": [USER, ANSWER], "tools": "f"}, '"tools"'),
    ],
)
def test_a_bad_conversation_is_named_with_its_line(tmp_path, row, words):
    with pytest.raises(DataError, match=r"^train\.jsonl line 2 .*" + words):
        read(tmp_path, {"messages": [USER, ANSWER]}, row)


def test_further_bad_rows_are_counted(tmp_path):
    good, bad = {"input": "i", "output": "o"}, {"input": "i", "output": ""}
    with pytest.raises(DataError, match=r"line 2 .* 2 more are wrong too\."):
        read(tmp_path, good, bad, bad, good, bad)
