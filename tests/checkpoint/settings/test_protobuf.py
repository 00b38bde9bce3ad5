"""Fields of a protobuf message, as the format's documentation writes them."""

import struct

import pytest

from nemoalign.checkpoint.settings.protobuf import message_fields


def test_every_kind_of_field_is_read():
    message = b"\x08\x96\x01" + b"\x12\x07testing" + b"\x1d" + struct.pack("<f", 0.5)
    message += b"\x21" + struct.pack("<d", 2.0)
    fields = list(message_fields(message))
    assert fields == [
        (1, 150),
        (2, b"testing"),
        (3, struct.pack("<f", 0.5)),
        (4, bytes(6) + b"\0@"),
    ]


@pytest.mark.parametrize(
    "message", [b"\x12\x07test", b"\x1d\0\0", b"\x08", b"\x0b", b"\x08" + b"\x80" * 10 + b"\x01"]
)
def test_no_message_is_an_error(message):
    with pytest.raises((ValueError, IndexError)):
        list(message_fields(message))
