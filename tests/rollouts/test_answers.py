"""Answers know their tokens and where they end; a rollout knows the shapes of its numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.rollouts.answers import decoded
from tests.data.tiny import CharTokenizer
from tests.rollouts import made

TOKENIZER = CharTokenizer()
EOS = TOKENIZER.eos_id


def test_a_rollout_pads_behind_each_answer() -> None:
    found = made.rollout([2, 4, 1], each=2, rewards=torch.tensor([1.0, math.nan, 0.0]))
    assert found.lengths.tolist() == [2, 4, 1]
    assert found.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert found.groups.tolist() == [0, 0, 1]
    assert found.rewarded.tolist() == [True, False, True]
    assert found.finished.all()
    rows = [torch.arange(1, length + 1) for length in (2, 4, 1)]
    padded = found.padded(rows)
    assert padded.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4], [1, 0, 0, 0]]
    assert padded.dtype is torch.float32


def test_an_answers_tokens_begin_with_its_prompt() -> None:
    one = made.answer([9, 8], prompt=[4, 3])
    assert one.tokens.tolist() == [4, 3, 9, 8]


@pytest.mark.parametrize(
    ("ids", "stops", "expected"),
    [
        ("four.", (), ("four.", False)),
        ("four.<", (), ("four.", True)),
        ("<", (), ("", True)),
        ("", (), ("", False)),
        ("four\nfive", ("\n",), ("four", True)),
        ("four END five\n", ("\n", "END"), ("four ", True)),
        ("four<", ("\n",), ("four", True)),
        ("four<five", (), ("four<end>five", False)),
    ],
)
def test_text_ends_before_what_ends_it(ids, stops, expected) -> None:
    tokens = [EOS if letter == "<" else TOKENIZER.encode(letter)[0] for letter in ids]
    assert decoded(TOKENIZER.decode, tokens, frozenset({EOS}), stops) == expected


@given(st.text("abc;", max_size=8), st.booleans(), st.lists(st.sampled_from(["a", "b;", ";"])))
def test_no_text_holds_what_stops_it_and_only_ended_answers_end(text, ends, stops) -> None:
    ids = TOKENIZER.encode(text) + [EOS] * ends
    found, ended = decoded(TOKENIZER.decode, ids, frozenset({EOS}), stops)
    assert text.startswith(found)
    assert not any(stop in found for stop in stops)
    assert ended == (ends or found != text)
