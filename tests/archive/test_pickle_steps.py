from __future__ import annotations

import pickle
import pickletools

import pytest

from nemoalign.archive.pickle_steps import STEPS, STOP
from nemoalign.archive.pickles import load_pickle
from nemoalign.errors import SourceError

HAND_MADE = {
    "mark and tuple": b"(K\x01K\x02K\x03K\x04t.",
    "mark and list": b"(K\x01K\x02l.",
    "mark and dict": b"(K\x01K\x02K\x03K\x04d.",
    "append and setitem": b"](K\x01eK\x02a0}K\x01K\x02s.",
    "pop": b"K\x01K\x020.",
    "pop a mark": b"K\x01(0.",
    "pop down to a mark": b"K\x01(K\x02K\x031.",
    "duplicate": b"]2\x86.",
    "tuples": b"K\x01K\x02K\x03\x87\x85\x85.",
    "numbers": b"(J\xfe\xff\xff\xffK\xffM\xff\xff\x8a\x00\x8a\x02\x00\x80\x8b\x01\x00\x00\x00\x81t.",
    "float": b"G\xbf\xf8\x00\x00\x00\x00\x00\x00.",
    "text of every width": b"(X\x01\x00\x00\x00a\x8c\x01b\x8d\x01\x00\x00\x00\x00\x00\x00\x00ct.",
    "bytes of every width": b"(B\x01\x00\x00\x00aC\x01b\x8e\x01\x00\x00\x00\x00\x00\x00\x00ct.",
    "text of Python 2": b"(U\x02ab" + b"T\x02\x00\x00\x00cdt.",
    "memo": b"K\x07q\x00K\x08\x94K\x09r\x02\x00\x00\x00h\x00h\x01j\x02\x00\x00\x00\x87.",
    "constants": b"(N\x88\x89)]}t.",
    "frame": b"\x95\x02\x00\x00\x00\x00\x00\x00\x00K\x05.",
}


@pytest.mark.parametrize("body", HAND_MADE.values(), ids=HAND_MADE)
def test_an_opcode_does_what_python_does(body: bytes) -> None:
    data = b"\x80\x04" + body
    assert load_pickle(data, "test") == pickle.loads(data)


def test_sets_are_read_as_lists() -> None:
    assert load_pickle(pickle.dumps({1}, 4), "test") == [1]
    assert load_pickle(pickle.dumps(frozenset({2}), 4), "test") == [2]


@pytest.mark.parametrize(
    "body",
    [
        b"K\x01K\x02a.",
        b"K\x01(e.",
        b"]K\x01K\x02s.",
        b"](K\x01K\x02u.",
        b"}(K\x01u.",
        b"h\x05.",
        b"t.",
    ],
)
def test_an_opcode_on_the_wrong_value_is_refused(body: bytes) -> None:
    with pytest.raises(SourceError, match="no valid pickle"):
        load_pickle(b"\x80\x02" + body, "test")


def test_only_opcodes_of_checkpoints_are_known() -> None:
    """The rest reaches registries, out-of-band buffers, or text forms that nobody writes."""
    known = {pickletools.code2op[chr(code)].name for code in [*STEPS, STOP]}
    refused = {op.name for op in pickletools.opcodes} - known
    assert refused == {
        *("INT", "LONG", "STRING", "UNICODE", "FLOAT", "GET", "PUT", "PERSID", "INST", "OBJ"),
        *("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"),
    }


def test_keywords_of_a_new_object_become_its_attributes() -> None:
    data = b"\x80\x04cargparse\nNamespace\n)}X\x01\x00\x00\x00aK\x01s\x92."
    found = load_pickle(data, "test")
    assert (found.kind, found.fields) == ("Namespace", {"a": 1})
