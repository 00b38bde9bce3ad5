from __future__ import annotations

from pathlib import Path

import pytest

from nemoalign.archive.urls import UrlPath, is_url


@pytest.mark.parametrize("url", ["https://h/a", "http://h:80/a", "s3://b/k", "FILE:///etc/passwd"])
def test_an_address_is_one_also_as_a_path(url: str) -> None:
    assert is_url(url)
    assert is_url(str(Path(url)))
    assert str(UrlPath(url)) == url.replace(":///", "://")


@pytest.mark.parametrize("path", ["a/b", "/a", "C:", "m.nemo", "a:b", "./https://x", "meta/llama"])
def test_a_path_is_none(path: str) -> None:
    assert not is_url(path)
