from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.archive.files import open_container
from nemoalign.archive.tar_read import MAX_HEADER_BYTES
from nemoalign.errors import SourceError
from tests.archive.makers import make_tar

GOOD = {"./model_config.yaml": b"a: 1\n", "./model_weights/.metadata": b"m" * 700}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read(form: int, tmp_path: Path) -> None:
    name = "ü" * 150 + "_tokenizer.model"
    path = make_tar(tmp_path / "x.nemo", {**GOOD, name: b"t"}, format=form)
    assert open_container(path).member(name).read(1) == b"t"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("model_config.yaml")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(SourceError, match=r"(link|special file) 'model_config\.yaml'"):
        open_container(path)


@given(st.data())
def test_an_archive_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = make_tar(folder / "x.nemo", GOOD).read_bytes()
    with tarfile.open(folder / "x.nemo") as tar:
        end = tar.getmembers()[-1].offset_data + 1024  # 700 bytes take two blocks
    cut = folder / "cut.nemo"
    cut.write_bytes(whole[: data.draw(st.integers(0, end + 511))])
    with pytest.raises(SourceError):
        open_container(cut)
    cut.write_bytes(whole[: end + 512])
    assert len(open_container(cut).members) == 2


def test_a_cut_inside_a_member_names_it(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.nemo", GOOD)
    path.write_bytes(path.read_bytes()[:1900])
    with pytest.raises(SourceError, match=r"model_weights/\.metadata: the archive is truncated"):
        open_container(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.nemo", GOOD)
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 0xFF  # checksum of the second header
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"right after \./model_config\.yaml"):
        open_container(path)


def test_a_header_cannot_make_us_read_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, MAX_HEADER_BYTES * 4
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(SourceError, match="a header of"):
        open_container(path)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(600), os.urandom(2000)])
def test_what_is_no_archive_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.nemo"):
        open_container(path)
