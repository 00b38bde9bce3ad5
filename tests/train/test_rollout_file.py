"""A file of rollouts that is read from its ends, however its lines fall into blocks."""

import json

import pytest

from nemoalign.train import rollout_file
from nemoalign.train.rollout_file import append_rows, first_rows, forget_from, last_rows


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def file(request, tmp_path, monkeypatch):
    """Three steps of three rows each; blocks from a byte to more than the file."""
    monkeypatch.setattr(rollout_file, "BLOCK_BYTES", request.param)
    for step in (1, 2, 10):
        append_rows(tmp_path / "rollouts.jsonl", step, [{"n": n, "text": "ä\n" * n} for n in range(3)])  # fmt: skip
    return tmp_path / "rollouts.jsonl"


def numbers(rows) -> list[tuple[int, int]]:
    return [(row["step"], row["n"]) for row in rows]


def test_both_ends_are_of_one_step_each_and_in_order(file) -> None:
    assert numbers(first_rows(file, 2)) == [(1, 0), (1, 1)]
    assert numbers(first_rows(file, 9)) == [(1, 0), (1, 1), (1, 2)]
    assert numbers(last_rows(file, 2)) == [(10, 1), (10, 2)]
    assert numbers(last_rows(file, 9)) == [(10, 0), (10, 1), (10, 2)]
    assert last_rows(file, 1)[0]["text"] == "ä\nä\n"


@pytest.mark.parametrize("torn", ["", '{"step": 10, "n": 9}', '{"step": 1', "\n"])
@pytest.mark.parametrize(("step", "left"), [(1, []), (2, [1]), (9, [1, 2]), (11, [1, 2, 10])])
def test_a_step_and_those_after_it_are_forgotten_and_half_a_line(file, step, left, torn) -> None:
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole) + torn)
    forget_from(file, step)
    assert file.read_text() == "".join(whole[: 3 * len(left)])
    append_rows(file, step, [{"n": 5}])
    assert numbers(last_rows(file, 9))[-1] == (step, 5)


def test_broken_lines_are_no_rows(file) -> None:
    file.write_text("nonsense\n[1]\n" + file.read_text() + '{"n": 3}\n{"step": "x"}\n')
    assert numbers(first_rows(file, 1)) == [(1, 0)]
    assert numbers(last_rows(file, 1)) == [(10, 2)]


def test_no_file_has_no_rows(tmp_path) -> None:
    forget_from(tmp_path / "none", 1)
    assert first_rows(tmp_path / "none", 3) == last_rows(tmp_path / "none", 3) == []
    (tmp_path / "empty").touch()
    assert first_rows(tmp_path / "empty", 3) == last_rows(tmp_path / "empty", 3) == []


def test_half_a_character_is_written_as_json_escapes_it(tmp_path) -> None:
    append_rows(tmp_path / "a", 1, [{"prompt": "x\ud800y"}])
    assert json.loads((tmp_path / "a").read_bytes())["prompt"] == "x\ud800y"
