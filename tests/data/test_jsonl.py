import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.data.jsonl import JsonlFile, kind_of
from nemoalign.errors import DataError, SourceError


def write(tmp_path, content: bytes):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    return path


@given(
    rows=st.lists(st.dictionaries(st.text(), st.text() | st.integers()), min_size=1, max_size=8),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\n\n", "\n  \t\n"]), min_size=8, max_size=8),
    final=st.booleans(),
)
def test_every_row_and_its_line_number_come_back(tmp_path_factory, rows, ends, final):
    text, numbers = "", []
    for row, end in zip(rows, ends, strict=False):
        numbers.append(text.count("\n") + 1)
        text += json.dumps(row, ensure_ascii=False) + end
    path = write(
        tmp_path_factory.mktemp("rows"), (text if final else text.rstrip("\n\r\t ")).encode()
    )
    file = JsonlFile(path)
    assert [file.record(row) for row in range(len(file))] == rows
    assert [file.where(row) for row in range(len(file))] == [
        f"train.jsonl line {n}" for n in numbers
    ]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    assert JsonlFile(write(tmp_path, b'\xef\xbb\xbf{"a": 1}\n')).record(0) == {"a": 1}


def test_blank_lines_are_counted(tmp_path):
    assert JsonlFile(write(tmp_path, b'\n{"a": 1}\n \n{"a": 2}\n\n')).blank_lines == 3


def test_files_longer_than_one_chunk_are_indexed_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("nemoalign.data.jsonl._CHUNK_BYTES", 7)
    file = JsonlFile(write(tmp_path, b'{"a": 1}\n{"a": 22}\n\n{"a": 333}'))
    assert [file.record(row)["a"] for row in range(3)] == [1, 22, 333]
    assert file.where(2) == "train.jsonl line 4"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": }', r"line 2 is not JSON \(Expecting value at column 7\)"),
        (b"{'a': 1}", "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b"[1, 2]", "line 2 is a JSON array, not an object"),
        (b'"text"', "line 2 is a JSON string"),
        (b'{"a": "\xff"}', r"line 2 is not UTF-8 \(byte 0xff at position 8\)"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, words):
    file = JsonlFile(write(tmp_path, b'{"a": 1}\n' + line + b"\n"))
    with pytest.raises(DataError, match=words):
        file.record(1)


@pytest.mark.parametrize("content", [b'[{"a": 1}, {"a": 2}]', b'[\n  {"a": 1},\n  {"a": 2}\n]\n'])
def test_an_array_instead_of_lines_says_how_to_turn_it(tmp_path, content):
    with pytest.raises(DataError, match=r"jq -c '\.\[\]' train\.jsonl"):
        JsonlFile(write(tmp_path, content)).record(0)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="is empty"):
        JsonlFile(write(tmp_path, content))


def test_a_missing_file_is_an_unreadable_source(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        JsonlFile(tmp_path / "gone.jsonl")
    with pytest.raises(SourceError, match="Is a directory"):
        JsonlFile(tmp_path)


def test_kinds_are_named_as_json_names_them():
    values = ["", True, {}, [], None, 1.5]
    assert [kind_of(v) for v in values] == [
        "string",
        "boolean",
        "object",
        "array",
        "null",
        "number",
    ]
