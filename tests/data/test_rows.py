import pytest

from nemoalign.data.rows import answer_of, checked_text, listed, text_of
from nemoalign.errors import DataError


def test_text_is_returned_as_it_is():
    assert text_of({"a": " x "}, "a") == " x "
    assert answer_of({"a": "é"}, "a") == "é"
    assert listed({"a": 1, "b": 2}) == '"a" and "b"'
    assert listed([]) == "no fields"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: text_of({"b": ""}, "a"), 'no "a" field; it has "b"'),
        (lambda: answer_of({"a": " "}, "a"), 'an empty "a"'),
        (lambda: checked_text(None, "it"), "a null as it"),
        (lambda: checked_text("\ud800", "it"), "surrogate pair in it"),
    ],
)
def test_what_is_no_text_is_said(call, words):
    with pytest.raises(DataError, match=words):
        call()
