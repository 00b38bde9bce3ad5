from __future__ import annotations

import pytest

from nemoalign.archive.json_read import json_object
from nemoalign.errors import SourceError


def test_an_object_is_returned() -> None:
    assert json_object(b'{"a": [1, {"b": null}]}', "x") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"1", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000]
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match="the index"):
        json_object(data, "the index")
