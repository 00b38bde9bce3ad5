from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from nemoalign.archive.files import open_container
from nemoalign.archive.tar import MODIFIED, TarWriter

LONG = "a" * 120 + ".model"


def write_example(path: Path) -> Path:
    with TarWriter(path) as tar:
        tar.add_bytes("model_config.yaml", b"a: 1\n")
        tar.add_directory("model_weights")
        with tar.member("model_weights/data") as member:
            for number in range(100):
                member.write(bytes([number]) * 37)
            assert member.tell() == 3700
        tar.add_bytes(LONG, b"t" * 512)
    return path


def test_tarfile_reads_names_sizes_and_bytes(tmp_path: Path) -> None:
    with tarfile.open(write_example(tmp_path / "x.nemo"), "r:") as tar:
        assert tar.getnames() == [
            ".",
            "./model_config.yaml",
            "./model_weights",
            "./model_weights/data",
            f"./{LONG}",
        ]
        data = tar.extractfile("./model_weights/data").read()
        assert data == b"".join(bytes([n]) * 37 for n in range(100))
        assert {(m.mtime, m.uid, m.uname) for m in tar} == {(MODIFIED, 0, "")}
        assert tar.extractfile(f"./{LONG}").read() == b"t" * 512


def test_gnu_tar_unpacks_it_without_a_word(tmp_path: Path) -> None:
    path = write_example(tmp_path / "x.nemo")
    done = subprocess.run(
        ["tar", "-xf", path, "-C", tmp_path], check=True, capture_output=True, text=True
    )
    assert done.stdout == done.stderr == ""
    assert (tmp_path / "model_weights" / "data").stat().st_size == 3700


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_example(tmp_path / "1.nemo").read_bytes()
    assert write_example(tmp_path / "2.nemo").read_bytes() == first
    assert len(first) % tarfile.RECORDSIZE == 0


def test_our_reader_finds_what_was_written(tmp_path: Path) -> None:
    container = open_container(write_example(tmp_path / "x.nemo"))
    assert container.member(LONG).read(1000) == b"t" * 512
    assert container.member("model_weights/data").size == 3700


def test_data_begins_at_multiples_of_512(tmp_path: Path) -> None:
    container = open_container(write_example(tmp_path / "x.nemo"))
    assert {region.offset % 512 for region in container.members.values()} == {0}


def test_the_archive_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.nemo"
    with TarWriter(path) as tar:
        tar.add_bytes("a", b"1")
        assert not path.exists()
        assert len(list(path.parent.iterdir())) == 1
    assert [p.name for p in path.parent.iterdir()] == ["x.nemo"]


def fail_inside(path: Path) -> None:
    with TarWriter(path) as tar, tar.member("a") as member:
        member.write(b"123")
        message = "stop"
        raise KeyError(message)


def test_a_failure_keeps_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    path.write_bytes(b"old")
    with pytest.raises(KeyError, match="stop"):
        fail_inside(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.nemo"]
    assert path.read_bytes() == b"old"


def test_a_remainder_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.nemo") as tar:
        leftover = next(tmp_path.iterdir()).name
        tar.add_bytes("a", b"1")
    (tmp_path / leftover).write_bytes(b"remainder")
    write_example(tmp_path / "x.nemo")
    assert [p.name for p in tmp_path.iterdir()] == ["x.nemo"]


def test_a_name_is_written_once(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.nemo") as tar:
        tar.add_bytes("a", b"1")
        with pytest.raises(AssertionError, match="'a' is already"):
            tar.add_bytes("a", b"2")


def test_members_are_written_one_at_a_time(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.nemo") as tar:
        with tar.member("a"), pytest.raises(AssertionError, match="one member"):
            tar.add_bytes("b", b"2")
        tar.add_bytes("b", b"2")


def test_reserved_members_are_written_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    with TarWriter(path) as tar:
        first, second = tar.reserve("a", 600), tar.reserve("b", 3)
        tar.add_bytes("c", b"last")
        first.write(b"1" * 300)
        second.write(b"abc")
        first.write(memoryview(b"2" * 300))
    with tarfile.open(path, "r:") as tar:
        assert tar.extractfile("./a").read() == b"1" * 300 + b"2" * 300
        assert tar.extractfile("./b").read() == b"abc"
        assert tar.extractfile("./c").read() == b"last"


@pytest.mark.parametrize("size", [2, 4])
def test_a_reserved_member_is_filled_exactly(size: int, tmp_path: Path) -> None:
    with pytest.raises(AssertionError), TarWriter(tmp_path / "x.nemo") as tar:
        tar.reserve("a", size).write(b"abc")
    assert not list(tmp_path.iterdir())
