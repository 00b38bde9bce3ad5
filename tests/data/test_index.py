import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from nemoalign.data import index
from nemoalign.data.index import HEADER, IndexDirectory, cache_directory
from nemoalign.errors import ResourceError


class Maker:
    """Makes the numbers of a file, and counts how often it is asked to."""

    def __init__(self, path: Path) -> None:
        self.path, self.times = path, 0

    def __call__(self):
        self.times += 1
        for word in self.path.read_text().split():
            yield "numbers", np.array([int(word)], np.int64)
        yield "none", np.empty(0, bool)


@pytest.fixture
def make(tmp_path) -> Maker:
    (tmp_path / "rows").write_text("3 1 4")
    return Maker(tmp_path / "rows")


def numbers(directory, make, **key):
    found = IndexDirectory(directory).arrays(make.path, key, make)
    assert found["none"].tolist() == []
    return found["numbers"].tolist()


def kept(directory):
    return sorted(path.parent for path in directory.glob(f"*/{HEADER}"))


def test_arrays_are_made_once_and_read_ever_after(tmp_path, make):
    for _ in range(3):
        assert numbers(tmp_path / "deep/index", make) == [3, 1, 4]
    assert make.times == 1
    assert len(kept(tmp_path / "deep/index")) == 1


def test_another_file_content_or_setting_is_another_index(tmp_path, make):
    numbers(tmp_path / "index", make)
    numbers(tmp_path / "index", make, seq_len=5)
    assert make.times == 2
    before = make.path.stat()
    make.path.write_text("2 7 1")
    os.utime(make.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert numbers(tmp_path / "index", make) == [2, 7, 1]


def damage_header(directory):
    (directory / HEADER).write_text("{")


def foreign_header(directory):
    header = json.loads((directory / HEADER).read_text())
    (directory / HEADER).write_text(json.dumps({**header, "key": {}}))


def path_outside(directory):
    text = (directory / HEADER).read_text()
    (directory / HEADER).write_text(text.replace('"numbers": {', '"../../rows": {'))


def objects(directory):
    text = (directory / HEADER).read_text()
    (directory / HEADER).write_text(text.replace("<i8", "|O"))


def flip(directory):
    content = bytearray((directory / "numbers").read_bytes())
    content[3] ^= 1
    (directory / "numbers").write_bytes(content)


def cut(directory):
    os.truncate(directory / "numbers", 8)


def gone(directory):
    (directory / "none").unlink()


@pytest.mark.parametrize(
    "harm", [damage_header, foreign_header, path_outside, objects, flip, cut, gone]
)
def test_a_damaged_or_foreign_index_is_made_again(tmp_path, make, harm):
    numbers(tmp_path / "index", make)
    harm(kept(tmp_path / "index")[0])
    assert numbers(tmp_path / "index", make) == [3, 1, 4]
    assert make.times == 2
    assert numbers(tmp_path / "index", make) == [3, 1, 4]
    assert make.times == 2


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path, make):
    (tmp_path / "file").write_text("")
    directory = IndexDirectory(tmp_path / "file")
    assert directory.arrays(make.path, {}, make)["numbers"].tolist() == [3, 1, 4]
    assert directory.problem == f"{tmp_path / 'file'}: File exists"


def test_nothing_is_left_of_an_index_that_could_not_be_made(tmp_path, make):
    def fails():
        yield from make()
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        IndexDirectory(tmp_path / "index").arrays(make.path, {}, fails)
    assert [path.suffix for path in (tmp_path / "index").iterdir()] == [".lock"]


def test_no_room_at_all_says_what_to_set(tmp_path, make, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(ResourceError, match="index_mapping_dir=DIR"):
        IndexDirectory(None).arrays(make.path, {}, make)


def test_a_full_disk_falls_back_and_leaves_nothing(tmp_path):
    """A size limit on files stands for a full disk: the kept index is refused, and so is a temporary one."""
    program = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from nemoalign.data.index import IndexDirectory\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "make = lambda: [('numbers', np.arange(10_000))]\n"
        "try:\n"
        "    IndexDirectory(Path(sys.argv[1])).arrays(Path(sys.argv[2]), {}, make)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    (tmp_path / "rows").write_text("")
    out = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "index", tmp_path / "rows"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert out.startswith("ResourceError There is no room to index")
    assert [path.suffix for path in (tmp_path / "index").iterdir()] == [".lock"]


def test_of_many_at_once_one_makes_it_and_the_others_wait(tmp_path, make):
    start = threading.Barrier(6)
    found = []

    def rank() -> None:
        start.wait()
        found.append(numbers(tmp_path / "index", make))

    ranks = [threading.Thread(target=rank) for _ in range(6)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    assert found == [[3, 1, 4]] * 6
    assert make.times == 1


def test_the_indexes_used_last_are_kept(tmp_path, make, monkeypatch):
    monkeypatch.setattr(index, "KEPT_PER_FILE", 2)
    for length in range(4):
        numbers(tmp_path / "index", make, length=length)
        for age, path in enumerate(reversed(kept(tmp_path / "index"))):
            os.utime(path, (age, age) if length == 0 else None)
    assert len(kept(tmp_path / "index")) == 2
    times = make.times
    numbers(tmp_path / "index", make, length=3)
    assert make.times == times


def test_the_cache_is_where_people_say(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "nemoalign/index"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache/nemoalign/index"
