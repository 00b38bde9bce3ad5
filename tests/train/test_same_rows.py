import os

import pytest

from nemoalign.errors import ConflictError
from nemoalign.train.same_rows import check_same_rows, note_rows


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("one\ntwo\n")
    note_rows(tmp_path, [file])
    return file


def test_a_directory_without_a_run_knows_no_rows(tmp_path) -> None:
    check_same_rows(tmp_path, [tmp_path / "rows.jsonl"], "sft")


def test_the_same_rows_go_on_also_when_they_were_copied(rows) -> None:
    check_same_rows(rows.parent, [rows], "sft")
    os.utime(rows, (1, 1))
    check_same_rows(rows.parent, [rows], "sft")


@pytest.mark.parametrize(
    ("text", "says"),
    [("one\ntwo\nthree\n", "has 14 bytes and had 8"), ("one\nTWO\n", "has other content")],
)
def test_changed_rows_are_refused_with_the_ways_out(rows, text, says) -> None:
    rows.write_text(text)
    os.utime(rows, (1, 1))
    with pytest.raises(ConflictError, match=says) as caught:
        check_same_rows(rows.parent, [rows], "sft")
    assert f"nemoalign sft --config {rows.parent / 'config.yaml'}" in str(caught.value)
    assert "--overwrite" in str(caught.value)
