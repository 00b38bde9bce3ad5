from __future__ import annotations

import gzip
import importlib.util
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from nemoalign.archive.codecs import decoder
from nemoalign.errors import ContentError, ResourceError, SourceError
from tests.archive.makers import FIXTURES, region_of
from tests.archive.test_zarr import variant

DATA = np.random.default_rng(1).bytes(1000)


@pytest.mark.parametrize("name", ["zlib", "gzip"])
def test_streams_of_the_standard_library_are_unpacked(name: str, tmp_path: Path) -> None:
    packed = {"zlib": zlib, "gzip": gzip}[name].compress(DATA)
    (tmp_path / "0").write_bytes(packed)
    decode = decoder({"id": name, "level": 1}, "x")
    assert decode(region_of(tmp_path / "0"), 1000).tobytes() == DATA
    for size in (999, 1001):
        with pytest.raises(SourceError, match=f"does not hold the {size} bytes"):
            decode(region_of(tmp_path / "0"), size)
    for damaged in (packed[:-1], packed[:50] + bytes([packed[50] ^ 1]) + packed[51:], b"", b"text"):
        (tmp_path / "0").write_bytes(damaged)
        with pytest.raises(SourceError, match="compressed chunk"):
            decode(region_of(tmp_path / "0"), 1000)


def test_a_bomb_unpacks_no_more_than_a_chunk(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(zlib.compress(bytes(1 << 24)))
    with pytest.raises(SourceError, match="does not hold the 100 bytes"):
        decoder({"id": "zlib"}, "x")(region_of(tmp_path / "0"), 100)


@pytest.mark.parametrize("name", ["blosc", "zstd", "lz4"])
def test_other_compressors_are_read_where_numcodecs_is_installed(name: str) -> None:
    if importlib.util.find_spec("numcodecs"):
        with np.load(FIXTURES / "zarr_variants.npz") as arrays:
            assert np.array_equal(variant(name).read("x"), arrays[name])
    else:
        with pytest.raises(ResourceError, match=rf"{name}, .*nemoalign\[zarr\]"):
            variant(name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numcodecs", None)
    with pytest.raises(ResourceError, match=r"compressed with blosc.*nemoalign\[zarr\]"):
        decoder({"id": "blosc"}, "x")


@pytest.mark.parametrize("compressor", [{"id": "pickle"}, {"id": "json2"}, {}, "zlib", 3, []])
def test_nothing_else_is_looked_up(compressor: object) -> None:
    with pytest.raises(ContentError, match="not supported"):
        decoder(compressor, "x")


def test_no_compressor_needs_no_decoder() -> None:
    assert decoder(None, "x") is None
