"""Archives of NeMo up to 1.6.2, which Python's tarfile wrote with ``w:gz``, read where they are."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.archive import gzip_read
from nemoalign.archive.files import open_container
from nemoalign.archive.gzip_read import GzipReader
from nemoalign.archive.torch_file import TorchFile
from nemoalign.errors import NemoAlignError, SourceError
from tests.archive.makers import FIXTURES, make_tar, region_of

PLAIN = FIXTURES / "chatsft_tp1_file.nemo"


def gzipped(target: Path, prefix: str = "./") -> Path:
    """Pack a genuine archive again as the connector of NeMo 1.6 did, below another folder."""
    with tarfile.open(PLAIN) as old, tarfile.open(target, "w:gz") as new:
        for info in old:
            file = old.extractfile(info) if info.isreg() else None
            info.name = prefix + info.name.removeprefix("./")
            new.addfile(info, file)
    return target


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gzipped(tmp_path_factory.mktemp("packed") / "old.nemo")


@pytest.mark.parametrize("prefix", ["./", "", "megatron_gpt/"])
def test_members_and_tensors_are_those_of_the_plain_archive(prefix: str, tmp_path: Path) -> None:
    old, new = open_container(gzipped(tmp_path / "x.nemo", prefix)), open_container(PLAIN)
    assert old.members.keys() == new.members.keys()
    for name, region in new.members.items():
        assert old.members[name].map().tobytes() == region.map().tobytes()
    files = [TorchFile(c.member("model_weights.ckpt"), "x") for c in (old, new)]
    assert files[0].tensors == files[1].tensors
    for name in files[1].tensors:
        assert np.array_equal(files[0].read(name), files[1].read(name))
        assert not files[0].read(name).flags.writeable


@settings(max_examples=50)
@given(st.data())
def test_any_range_is_the_range_of_what_was_packed(packed: Path, data: st.DataObject) -> None:
    content = gzip.decompress(packed.read_bytes())
    reader = reader_of(packed)
    offset = data.draw(st.integers(0, len(content)))
    size = data.draw(st.integers(0, len(content) - offset))
    assert reader.read(offset, size) == content[offset : offset + size]


READERS: dict[Path, GzipReader] = {}


def reader_of(path: Path) -> GzipReader:
    """Return one reader for all examples, with many states and small pages."""
    if path not in READERS:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "CHUNK": 999,
                "FIRST_STEP": 5000,
                "MAX_POINTS": 20,
                "PAGE": 700,
            }.items():
                patch.setattr(gzip_read, name, value)
            READERS[path] = GzipReader(region_of(path))
    return READERS[path]


def test_states_stay_few_and_spread_over_the_whole_stream(packed: Path) -> None:
    points = reader_of(packed)._points
    assert 10 <= len(points) <= 21
    gaps = np.diff([point.plain for point in points])
    assert gaps.max() < 5 * gaps.min()


def test_a_stream_cut_anywhere_is_refused(packed: Path, tmp_path: Path) -> None:
    content = packed.read_bytes()
    for length in (2, 10, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.nemo").write_bytes(content[:length])
        with pytest.raises(SourceError, match=r"ends inside its gzip stream|damaged near byte"):
            open_container(tmp_path / "cut.nemo")


def test_a_wrong_sum_and_bytes_after_the_end_are_refused(packed: Path, tmp_path: Path) -> None:
    content = bytearray(packed.read_bytes())
    (tmp_path / "x.nemo").write_bytes(content + b"more")
    with pytest.raises(SourceError, match="goes on after the end"):
        open_container(tmp_path / "x.nemo")
    content[-8] ^= 1
    (tmp_path / "x.nemo").write_bytes(content)
    with pytest.raises(SourceError, match="damaged near byte"):
        open_container(tmp_path / "x.nemo")


def test_a_bomb_is_refused_before_it_has_filled_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gzip_read, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(gzip_read, "CHUNK", 1 << 10)
    (tmp_path / "bomb.nemo").write_bytes(gzip.compress(bytes(40 << 20)))
    tracemalloc.start()
    with pytest.raises(SourceError, match="more than 200 times its size"):
        open_container(tmp_path / "bomb.nemo")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_what_is_no_archive_inside_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x.nemo").write_bytes(gzip.compress(b"hello"))
    with pytest.raises(SourceError, match="not a tar archive"):
        open_container(tmp_path / "x.nemo")


def test_hostile_names_are_refused_as_in_a_plain_archive(tmp_path: Path) -> None:
    plain = make_tar(tmp_path / "x.tar", {"model_config.yaml": b"", "../evil": b""})
    (tmp_path / "x.nemo").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(SourceError, match="member name"):
        open_container(tmp_path / "x.nemo")


def small() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("model_config.yaml", "model_weights.ckpt"):
            info = tarfile.TarInfo(name)
            info.size = 3000
            tar.addfile(info, io.BytesIO(bytes(range(250)) * 12))
    return buffer.getvalue()


SMALL = small()


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4))
def test_damaged_streams_give_the_same_bytes_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(SMALL)
    for at, value in changes:
        content[at] = value
    path = tmp_path_factory.mktemp("damaged") / "x.nemo"
    path.write_bytes(content)
    with contextlib.suppress(NemoAlignError):
        assert open_container(path).member("model_weights.ckpt").size == 3000
