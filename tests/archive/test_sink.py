from __future__ import annotations

import resource
from pathlib import Path

import pytest

from nemoalign.archive import sink
from nemoalign.archive.sink import DirectoryWriter, FileWriter, sync_directory, temporary_name
from nemoalign.errors import ConflictError, ResourceError


def test_a_directory_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with DirectoryWriter(target) as writer:
        writer.add_bytes("a.json", b"{}")
        writer.add_directory("empty")
        with writer.member("sub/b") as member:
            assert member.write(b"12") == 2
            member.write(memoryview(b"345"))
            assert member.tell() == 5
        assert not target.exists()
    assert {p.relative_to(target).as_posix() for p in target.rglob("*")} == {
        "a.json",
        "empty",
        "sub",
        "sub/b",
    }
    assert (target / "sub" / "b").read_bytes() == b"12345"
    assert list(target.parent.iterdir()) == [target]


def fail_inside(target: Path) -> None:
    with DirectoryWriter(target) as writer:
        writer.add_bytes("a", b"1")
        message = "stop"
        raise KeyError(message)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_inside(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def write_into(target: Path) -> None:
    with DirectoryWriter(target) as writer:
        writer.add_bytes("a", b"new")


def test_an_existing_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_bytes(b"old")
    with pytest.raises(ConflictError, match="out cannot be created"):
        write_into(tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "precious"]


def test_bytes_may_be_put_in_front_of_what_is_there(tmp_path: Path) -> None:
    writer = FileWriter(tmp_path / "f")
    writer.write(b"....tail")
    assert writer.put(b"head", 0) == 4
    assert writer.tell() == 8
    writer.close()
    assert (tmp_path / "f").read_bytes() == b"headtail"


def test_flushing_in_the_background_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "WRITEBACK_BYTES", 10)
    writer = FileWriter(tmp_path / "f")
    for number in range(50):
        writer.write(bytes([number]) * 7)
    writer.sync()
    writer.close()
    assert (tmp_path / "f").read_bytes() == b"".join(bytes([n]) * 7 for n in range(50))


def test_an_existing_file_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(ResourceError, match="File exists"):
        FileWriter(tmp_path / "f")


def test_a_full_disk_is_an_error_with_the_position(tmp_path: Path) -> None:
    writer = FileWriter(tmp_path / "f")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="byte 1000: File too large"):
            writer.write(bytes(4000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.close()


def test_temporary_names_lie_beside_their_target(tmp_path: Path) -> None:
    name = temporary_name(tmp_path / "x.nemo")
    assert name.parent == tmp_path
    assert name.name.startswith("x.nemo.tmp-")
    sync_directory(tmp_path)
