import pytest

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError

LEAST = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}


def architecture(**fields):
    return Architecture.from_nemo({**LEAST, **fields})


def test_absent_fields_mean_what_nemo_means_by_them():
    gpt = architecture()
    assert (gpt.bias, gpt.activation, gpt.normalization) == (True, "gelu", "layernorm")
    assert gpt.position_embedding_type == "learned_absolute"
    assert (gpt.query_groups, gpt.head_dim, gpt.qkv_rows) == (4, 16, 192)
    assert not gpt.gated


def test_grouped_queries_and_a_head_width_of_its_own_decide_the_rows_of_qkv():
    llama = architecture(num_query_groups=2, kv_channels=32, activation="fast-swiglu")
    assert llama.qkv_rows == (4 + 2 * 2) * 32
    assert llama.gated


def test_numbers_are_taken_as_the_field_is_whatever_yaml_made_of_them():
    read = architecture(
        num_layers=2.0, rotary_base=500000, layernorm_epsilon="1e-5", window_size=[4096, 0]
    )
    assert (read.num_layers, read.rotary_base, read.layernorm_epsilon) == (2, 500000.0, 1e-5)
    assert isinstance(read.num_layers, int)
    assert isinstance(read.rotary_base, float)
    assert read.window_size == (4096, 0)


def test_null_is_the_default_and_unknown_fields_are_somebody_elses():
    assert architecture(num_query_groups=None, bias=None, precision="bf16") == architecture()


@pytest.mark.parametrize("name", LEAST)
def test_a_size_without_a_default_is_named_when_it_is_absent(name):
    with pytest.raises(ContentError, match=name):
        Architecture.from_nemo({key: value for key, value in LEAST.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_layers", 2.5), ("hidden_size", True), ("bias", "yes"), ("rotary_base", "wide")],
)
def test_a_value_of_the_wrong_kind_is_named(name, value):
    with pytest.raises(ContentError, match=r"model_config\.yaml.*" + str(value)):
        architecture(**{name: value})


@pytest.mark.parametrize(
    ("vocabulary", "tp", "rows"), [(519, 1, 640), (519, 2, 768), (512, 4, 512), (50257, 8, 51200)]
)
def test_the_embedding_is_padded_to_a_multiple_of_128_for_every_rank(vocabulary, tp, rows):
    assert architecture().padded_vocab_size(vocabulary, tp) == rows


def test_an_overriding_vocabulary_holds_where_the_ranks_divide_it():
    fixed = architecture(override_vocab_size=520)
    assert fixed.padded_vocab_size(519, 4) == 520
    assert fixed.padded_vocab_size(519, 3) == 768


@pytest.mark.parametrize("none", [[-1, -1], [-1, 0], [None, 0]])
def test_a_window_without_a_left_side_is_none(none):
    sizes = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 6, "num_attention_heads": 2}
    assert Architecture.from_nemo(sizes | {"window_size": none}).window_size is None
