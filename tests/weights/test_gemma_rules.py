"""Gemma 2's fields against what transformers assumes and accepts."""

from __future__ import annotations

import pytest
from transformers import Gemma2Config

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.gemma_rules import AlternatingWindow, Softcaps

SIZES = {"num_layers": 3, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 2}


def test_absent_fields_are_what_transformers_assumes():
    config = Gemma2Config(num_hidden_layers=3)
    fields = Softcaps().to_nemo({})
    arch = Architecture.from_nemo(SIZES | fields)
    assert arch.has_post_norms
    for name, value in Softcaps().to_hf(arch).items():
        assert value == getattr(config, name), name
    window = AlternatingWindow().to_nemo({"num_hidden_layers": 3})
    assert window == {"window_size": [config.sliding_window - 1, 0]}


def test_layers_take_turns_as_in_transformers():
    config = Gemma2Config(num_hidden_layers=3, sliding_window=7)
    written = config.to_dict()
    arch = Architecture.from_nemo(SIZES | AlternatingWindow().to_nemo(written))
    back = AlternatingWindow().to_hf(arch)
    assert back == {"sliding_window": 7, "layer_types": config.layer_types}


def test_no_cap_stays_no_cap():
    fields = Softcaps().to_nemo({"attn_logit_softcapping": None, "final_logit_softcapping": None})
    arch = Architecture.from_nemo(SIZES | fields)
    assert arch.attn_logit_softcapping is None
    assert arch.final_logit_softcapping is None


def test_other_layers_than_every_second_are_refused():
    config = Gemma2Config(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(ContentError, match="layer_types"):
        AlternatingWindow().to_nemo(config.to_dict())
