"""Ranges over a real server on this machine, good and evil."""

from __future__ import annotations

import sys

import fsspec
import numpy as np
import pytest

from nemoalign.archive import remote
from nemoalign.archive.files import open_tar
from nemoalign.archive.remote import RemoteFile, with_fsspec
from nemoalign.errors import ConfigError, ResourceError, SourceError
from tests.archive.makers import FIXTURES
from tests.archive.serving import serving

CONTENT = np.random.default_rng(0).bytes(200_000)


def test_ranges_are_the_files_bytes_and_neighbours_cost_one_request() -> None:
    with serving({"x": CONTENT}) as served:
        file = RemoteFile(f"{served.url}/x?token=secret")
        assert file.size == len(CONTENT)
        region = file.region.part(100_000, 50_000)
        for start in range(0, 5000, 100):
            assert region.bytes(start, 100) == CONTENT[100_000 + start : 100_100 + start]
        assert region.map(7, 40_000).tobytes() == CONTENT[100_007:140_007]
        assert len(served.ranges) == file.requests <= 4
        assert served.sent == file.fetched < 100_000
        assert "secret" not in str(file.path)


def test_an_archive_is_opened_without_its_weights() -> None:
    content = (FIXTURES / "llama.nemo").read_bytes()
    with serving({"llama.nemo": content}) as served:
        container = open_tar(RemoteFile(f"{served.url}/llama.nemo").region)
        assert "model_weights/.metadata" in container.members
        assert served.sent < len(content) / 3


@pytest.mark.parametrize(
    ("behaviour", "match"),
    [
        ("ignores ranges", "does not send parts of a file"),
        ("other range", "other bytes than it was asked for"),
        ("huge", "other bytes than it was asked for"),
        ("no numbers", "does not send parts of a file"),
        ("grows", "changed while it was read"),
        ("cuts", "stopped sending after 8192 of 16384"),
        ("redirect file:///etc/passwd", "not allowed"),
        ("redirect ftp://127.0.0.1/x", "leads to ftp:"),
        ("redirect gopher://127.0.0.1/x", "not allowed"),
    ],
)
def test_a_server_that_misbehaves_is_refused(behaviour: str, match: str) -> None:
    with serving({"x": CONTENT}, behaviour) as served, pytest.raises(SourceError, match=match):
        RemoteFile(f"{served.url}/x").read(50_000, 10)


def test_a_redirect_is_followed_with_its_range() -> None:
    with serving({"target": CONTENT}, "redirect") as served:
        assert RemoteFile(f"{served.url}/x").read(50_000, 10) == CONTENT[50_000:50_010]


def test_a_server_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST_SECONDS", -1)
    with serving({"x": CONTENT}) as served, pytest.raises(SourceError, match="stopped sending"):
        RemoteFile(f"{served.url}/x")


def test_no_more_than_the_limit_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_FETCHED", 50_000)
    with serving({"x": CONTENT}) as served:
        file = RemoteFile(f"{served.url}/x")
        with pytest.raises(SourceError, match="needs more than 50000 bytes"):
            file.read(0, 60_000)


def test_nobody_there_is_an_error() -> None:
    with serving({}) as served:
        url = f"{served.url}/missing"
        with pytest.raises(SourceError, match="404"):
            RemoteFile(url)
    with pytest.raises(SourceError, match="Check the address and the network"):
        RemoteFile(url)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://h/x",
        "http:///x",
        "https://me:word@h/x",
        "data:/x",
        "gopher://h/x",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read where it is"):
        RemoteFile(url)


def test_a_missing_cloud_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ResourceError, match=r"nemoalign\[remote\]"):
        RemoteFile("s3://bucket/model.nemo")


def test_fsspec_gives_ranges_and_the_size() -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/x", CONTENT)
    get = with_fsspec("memory://bucket/x", "x")
    assert get(10, 20) == (CONTENT[10:30], len(CONTENT))
    assert get(199_990, 100) == (CONTENT[199_990:], len(CONTENT))
    with pytest.raises(SourceError, match="Check the address and your access"):
        with_fsspec("memory://bucket/missing", "x")(0, 1)
