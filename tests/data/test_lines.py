import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.data.lines import LineFinder


def found(text: bytes, chunk: int) -> tuple[list[int], list[int]]:
    finder, pieces = LineFinder(), []
    for start in range(0, len(text), chunk):
        pieces += finder.feed(text[start : start + chunk])
    pieces += finder.finish()
    together = {
        name: np.concatenate([piece for named, piece in pieces if named == name]).tolist()
        for name in ("starts", "blanks")
    }
    return together["starts"], together["blanks"]


@given(
    st.lists(st.sampled_from([b"{}", b" {}", b"", b" \t", b"\r", b"x", b"\n"]), max_size=12),
    st.booleans(),
    st.integers(1, 9),
)
def test_lines_are_those_of_a_loop_however_the_text_is_cut(lines, final, chunk):
    text = b"\n".join(lines) + b"\n" * final
    starts, blanks, at = [], [], 0
    for line in text.splitlines(keepends=True) if b"\r" not in text else text.split(b"\n"):
        size = len(line) if b"\r" not in text else len(line) + 1
        if line.strip():
            starts.append(at)
        elif at < len(text):
            blanks.append(len(starts))
        at += size
    assert found(text, chunk) == (starts, blanks)
