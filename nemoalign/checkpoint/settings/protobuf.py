"""The wire format of protobuf, as far as a SentencePiece model needs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_COUNTED = 2
_FIXED = {1: 8, 5: 4}
"""Bytes of the two kinds of numbers of fixed width."""


def message_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of every field of a protobuf message: an int, or bytes.

    Numbers of fixed width come as their bytes.

    Raises:
        ValueError, IndexError: when it is no message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in _FIXED or kind == _COUNTED:
            size, at = (_FIXED[kind], at) if kind in _FIXED else _varint(data, at)
            value = data[at : at + size]
            if len(value) != size:
                raise ValueError("the message ends inside a field")
            at += size
        else:
            raise ValueError("no protobuf message")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number longer than 64 bits")
