from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from nemoalign.archive.files import open_container
from nemoalign.errors import SourceError
from tests.archive.makers import FIXTURES, make_tar

GOOD = {"./model_config.yaml": b"a: 1\n", "./model_weights/.metadata": b"m" * 700}


@pytest.mark.parametrize("name", ["llama.nemo", "gpt_tp1_dist.nemo", "llama_tp2_ranks.nemo"])
def test_members_of_a_genuine_archive_are_where_tarfile_finds_them(name: str) -> None:
    container = open_container(FIXTURES / name)
    with tarfile.open(FIXTURES / name) as tar:
        expected = {m.name.removeprefix("./"): m for m in tar if m.isreg()}
        assert list(container.members) == list(expected)
        for member, info in expected.items():
            found = container.members[member].read(1 << 20)
            assert found == tar.extractfile(info).read()


@pytest.mark.parametrize("prefix", ["./", "", "dir/", "./a/b/"])
def test_names_are_the_same_with_any_prefix(prefix: str, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.nemo", {prefix + n[2:]: data for n, data in GOOD.items()})
    container = open_container(path)
    assert container.kind == "tar"
    assert list(container.members) == ["model_config.yaml", "model_weights/.metadata"]
    assert container.member("model_config.yaml").read(9) == b"a: 1\n"


def test_a_sub_folder_is_a_container_of_its_own() -> None:
    weights = open_container(FIXTURES / "llama.nemo").under("model_weights")
    assert "metadata.json" in weights.members
    assert not open_container(FIXTURES / "llama.nemo").under("model").members


def test_a_checkpoint_inside_a_checkpoint_is_not_part_of_it(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / "critic"):
        for name, data in GOOD.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)
    names = ["model_config.yaml", "model_weights/.metadata"]
    assert list(open_container(tmp_path).members) == names
    assert list(open_container(tmp_path / "critic").members) == names
    (tmp_path / "model_config.yaml").unlink()
    assert next(iter(open_container(tmp_path).members)) == "critic/model_config.yaml"


def test_a_missing_member_is_named_with_the_archive(tmp_path: Path) -> None:
    container = open_container(make_tar(tmp_path / "x.nemo", GOOD))
    with pytest.raises(SourceError, match=r"x\.nemo has no metadata\.json"):
        container.member("metadata.json")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\b", "./.."])
def test_a_name_that_leaves_the_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.nemo", {**GOOD, name: b""})
    with pytest.raises(SourceError, match="member name"):
        open_container(path)


@pytest.mark.parametrize(
    "second", ["model_config.yaml", "./model_config.yaml", ".//model_config.yaml"]
)
def test_a_name_that_occurs_twice_is_refused(second: str, tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    with tarfile.open(path, "w") as tar:
        for name in ("model_config.yaml", second):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(SourceError, match="twice"):
        open_container(path)


def test_a_file_outside_of_the_prefix_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.nemo", {"m/model_config.yaml": b"", "model_weights.ckpt": b""})
    with pytest.raises(SourceError, match=r"unclear.*|model_weights\.ckpt"):
        open_container(path)


def test_a_missing_path_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_container(tmp_path / "nothing.nemo")


def make_directory(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "model_config.yaml").write_bytes(b"a: 1")
    (path / "sub" / "data").write_bytes(b"12345")
    return path


def test_a_directory_holds_the_same_as_an_archive(tmp_path: Path) -> None:
    container = open_container(make_directory(tmp_path / "d"))
    assert container.kind == "directory"
    assert {n: r.size for n, r in container.members.items()} == {
        "model_config.yaml": 4,
        "sub/data": 5,
    }


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "missing"])
def test_a_link_out_of_a_directory_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (make_directory(tmp_path / "d") / "tokenizer.model").symlink_to(target)
    with pytest.raises(SourceError, match=r"tokenizer\.model"):
        open_container(tmp_path / "d")


def test_a_linked_folder_outside_is_refused_and_one_inside_is_no_second_copy(
    tmp_path: Path,
) -> None:
    directory = make_directory(tmp_path / "d")
    (directory / "best").symlink_to("sub")
    assert len(open_container(directory).members) == 2
    (directory / "other").symlink_to("/etc")
    with pytest.raises(SourceError, match="other"):
        open_container(directory)


def test_a_hub_cache_may_link_to_its_own_blobs(tmp_path: Path) -> None:
    blobs = tmp_path / "models--x" / "blobs"
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1234").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert open_container(snapshot).member("model.safetensors").read(10) == b"weights"


def test_a_pipe_in_a_directory_is_refused(tmp_path: Path) -> None:
    os.mkfifo(make_directory(tmp_path / "d") / "pipe")
    with pytest.raises(SourceError, match="pipe"):
        open_container(tmp_path / "d")
