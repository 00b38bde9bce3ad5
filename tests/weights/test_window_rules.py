"""Windows: W positions for Hugging Face are [W - 1, 0] for megatron-core, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.window_rules import LayerWindow, Window, visible_positions

SIZES = {"num_layers": 3, "hidden_size": 8, "ffn_hidden_size": 6, "num_attention_heads": 2}


def architecture(window) -> Architecture:
    return Architecture.from_nemo(SIZES | {"window_size": window})


@given(st.none() | st.integers(1, 1 << 20))
def test_a_window_comes_back(width):
    fields = Window().to_nemo({"sliding_window": width})
    assert Window().to_hf(architecture(fields["window_size"])) == {"sliding_window": width}


@given(st.none() | st.integers(1, 1 << 20))
def test_a_window_of_all_layers_comes_back(width):
    written = LayerWindow().to_hf(architecture(None if width is None else [width - 1, 0]))
    fields = LayerWindow().to_nemo(written | {"num_hidden_layers": 3})
    assert fields["window_size"] == (None if width is None else [width - 1, 0])


def test_an_absent_window_is_what_transformers_assumes_and_null_is_none():
    assert Window(default=4096).to_nemo({}) == {"window_size": [4095, 0]}
    assert Window(default=4096).to_nemo({"sliding_window": None}) == {"window_size": None}


@pytest.mark.parametrize("width", [0, -1, True, "wide", 2.5])
def test_no_number_is_refused(width):
    with pytest.raises(ContentError, match="sliding_window"):
        Window().to_nemo({"sliding_window": width})


def test_a_huge_number_of_layers_takes_no_memory():
    fields = {"num_hidden_layers": 10**15, "use_sliding_window": True, "max_window_layers": 1}
    with pytest.raises(ContentError, match="a sliding window in 999999999999999 of"):
        LayerWindow().to_nemo(fields)


def test_a_window_into_the_future_is_refused():
    with pytest.raises(ContentError, match=r"window_size \[4, 2\]"):
        visible_positions(architecture([4, 2]))
