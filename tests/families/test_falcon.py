"""Falcon against transformers, and its archives against the names of NeMo's own Falcon layer."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import FalconConfig

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.stores import PlacedStore
from nemoalign.errors import ContentError
from nemoalign.families.falcon import FAMILY
from nemoalign.log import PlainReporter
from nemoalign.model.spec import refuse_unsupported
from nemoalign.weights.config_rules import nemo_fields
from tests.families import checks

SIZES: dict[str, Any] = {
    "vocab_size": checks.VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
MODELS: dict[str, dict[str, Any]] = {
    "7b": {},
    "40b": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2},
    "11b": {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
        "tie_word_embeddings": False,
    },
    "many keys": {"multi_query": False, "ffn_hidden_size": 48},
    "one after the other": {"parallel_attn": False, "multi_query": False, "bias": True},
}
NORMS = {
    "7b": ["input_layernorm"],
    "40b": ["input_layernorm", "pre_mlp_layernorm"],
    "11b": ["input_layernorm"],
    "many keys": ["input_layernorm"],
    "one after the other": ["input_layernorm", "post_self_attn_layernorm"],
}


def config(**changes: Any) -> FalconConfig:
    return FalconConfig(**(SIZES | changes))


@pytest.mark.parametrize("name", MODELS)
def test_table_and_config_are_those_of_transformers(name, tmp_path):
    made = config(**MODELS[name])
    checks.assert_table_covers_the_model(FAMILY, made)
    # Multi-query ignores num_kv_heads, whose default is the number of heads.
    ignored = () if made.new_decoder_architecture else ("num_kv_heads",)
    checks.assert_config_comes_back(FAMILY, made, tmp_path, ignored)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_with_the_keys_of_nemos_falcon_layer(name, tmp_path):
    hf = checks.save_model(tmp_path / "hf", config(**MODELS[name]))
    nemo = checks.assert_round_trip(hf, tmp_path)
    source = open_source(nemo)
    assert source.config["name"] == "megatron_falcon_gpt"
    assert isinstance(source.weights, PlacedStore)
    keys = {source.weights.place(n).key for n in source.weights.tensors if ".layers." in n}
    norms = {
        f"model.decoder.layers.{norm}.{part}" for norm in NORMS[name] for part in ("weight", "bias")
    }
    assert {key for key in keys if "norm" in key} == norms
    checks.assert_export_without_memory(nemo, hf, tmp_path / "made")


def test_training_refuses_it(tmp_path):
    hf = checks.save_model(tmp_path / "hf", config())
    with pytest.raises(ContentError, match="megatron_falcon_gpt"):
        refuse_unsupported(open_source(hf).arch)


def test_nemo2_has_no_such_layers_and_nothing_is_left(tmp_path):
    hf = checks.save_model(tmp_path / "hf", config())
    with pytest.raises(
        ContentError, match="NeMo 2 has no model with the layers of megatron_falcon"
    ):
        convert(hf, tmp_path / "out", to="nemo2", reporter=PlainReporter(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alibi": True}, "alibi"),
        ({"bias": True}, "leaves the biases away"),
        ({"new_decoder_architecture": True, "parallel_attn": False}, "no Falcon of NeMo's"),
        ({"num_ln_in_parallel_attn": 2}, "no Falcon of NeMo's"),
        ({"activation": "relu"}, "activation"),
    ],
)
def test_what_a_nemo_cannot_represent_is_refused_by_field(changes, words):
    with pytest.raises(ContentError, match=words):
        nemo_fields(FAMILY.config, config().to_dict() | changes)
