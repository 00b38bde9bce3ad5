import json
import zlib

import pytest

from nemoalign.train.sums import SUMS, find_damage, write_sums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "a.bin").write_bytes(b"x" * 100_000)
    (tmp_path / "inside" / "b").write_bytes(b"")
    write_sums(tmp_path)
    return tmp_path


def test_every_file_is_listed_with_size_and_sum(folder):
    assert json.loads((folder / SUMS).read_text()) == {
        "a.bin": [100_000, zlib.crc32(b"x" * 100_000)],
        "inside/b": [0, 0],
    }
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "a.bin").write_bytes(b"x" * 99_999 + b"y"), "a.bin is not what was"),
        (lambda f: (f / "a.bin").write_bytes(b"x" * 99_999), "a.bin is not what was"),
        (lambda f: (f / "inside" / "b").unlink(), "inside/b is missing"),
        (lambda f: (f / SUMS).write_text("{"), "not JSON"),
    ],
)
def test_damage_is_found_and_named(folder, damage, words):
    damage(folder)
    assert words in (find_damage(folder) or "")


def test_a_checkpoint_without_sums_is_taken_as_it_is(folder):
    (folder / SUMS).unlink()
    assert find_damage(folder) is None
