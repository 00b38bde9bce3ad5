"""Sizes of GPT-2: rows of a position table, and an MLP width that may be left out."""

from __future__ import annotations

import pytest

from nemoalign.errors import ContentError
from nemoalign.weights.size_rules import FeedForward, LearnedPositions
from tests.weights.test_ops import architecture


def test_positions_are_the_rows_of_the_table_and_not_the_longer_of_two_lengths():
    fields = LearnedPositions("n_positions").to_nemo({"n_positions": 48})
    assert fields == {"encoder_seq_length": 48, "max_position_embeddings": 48}
    arch = architecture(encoder_seq_length=48, max_position_embeddings=512)
    assert LearnedPositions("n_positions").to_hf(arch) == {"n_positions": 48}


def test_positions_must_be_there():
    with pytest.raises(ContentError, match="n_positions"):
        LearnedPositions("n_positions").to_nemo({})


@pytest.mark.parametrize(
    ("written", "width"), [({}, 32), ({"n_inner": None}, 32), ({"n_inner": 6}, 6)]
)
def test_a_width_that_is_left_out_is_four_times_the_hidden_size(written, width):
    rule = FeedForward("n_inner", hidden="n_embd")
    assert rule.to_nemo({"n_embd": 8, **written}) == {"ffn_hidden_size": width}
    back = rule.to_hf(architecture(ffn_hidden_size=width))
    assert back == {"n_inner": None if width == 32 else width}
