"""Every key is taken once, or named with what is near."""

from __future__ import annotations

import pytest

from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.sources.canonical import (
    check_tensors,
    find_tensors,
    optimizer_state,
    without_copies,
)
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError
from nemoalign.weights.tensors import expected_shapes

ARCH = Architecture(num_layers=2, hidden_size=8, ffn_hidden_size=12, num_attention_heads=2)
QKV = "self_attention.linear_qkv.weight"


class Keys:
    """A store of which only the index is looked at."""

    def __init__(self, shapes):
        self.tensors = {key: TensorInfo(shape, "float32") for key, shape in shapes.items()}

    def read(self, name, index=()):
        raise AssertionError("opening reads no tensor")


def test_stacked_and_single_layers_are_found_alike():
    stacked = find_tensors(Keys({f"model.decoder.layers.{QKV}": (2, 24, 8)}), "a")
    single = find_tensors(Keys({f"module.decoder.layers.{i}.{QKV}": (24, 8) for i in (0, 1)}), "b")
    assert list(stacked.model) == list(single.model)
    assert {place.info for place in (*stacked.model.values(), *single.model.values())} == {
        TensorInfo((24, 8), "float32")
    }
    assert stacked.num_layers == 2


def test_optimizer_state_and_fp8_state_are_no_weights():
    keys = ("optimizer.state.exp_avg.model.x", "model.decoder.layers.x._extra_state")
    found = find_tensors(Keys(dict.fromkeys(keys, (1,))), "a")
    assert not found.model
    assert not found.adapter


def test_optimizer_state_is_found_by_its_weight_unless_it_was_flattened():
    weight = f"model.decoder.layers.{QKV}"
    keys = {weight: (2, 24, 8), f"optimizer.state.exp_avg.{weight}": (2, 24, 8)}
    state = optimizer_state(find_tensors(Keys(keys), "a"))
    assert list(state) == [f"exp_avg.decoder.layers.{i}.{QKV}" for i in (0, 1)]
    keys[f"optimizer.state.exp_avg_sq.{weight}"] = (2 * 24 * 8,)
    assert optimizer_state(find_tensors(Keys(keys), "a")) == {}


def test_one_tensor_under_two_keys_is_refused():
    keys = ("model.output_layer.weight", "output_layer.weight")
    with pytest.raises(ContentError, match=r"twice, as .model\.output_layer"):
        find_tensors(Keys(dict.fromkeys(keys, (1, 1))), "a.nemo")


def test_names_from_before_megatron_core_become_its_own():
    keys = ("language_model.encoder.layers.0.input_layernorm.weight", "word_embeddings.weight")
    found = find_tensors(Keys({f"model.{key}": (8, 8) for key in keys}), "a.nemo")
    assert found.is_legacy
    names = ["decoder.layers.0.self_attention.linear_qkv.layer_norm_weight", "output_layer.weight"]
    assert list(found.model) == names


def test_gate_and_up_kept_apart_become_one_tensor():
    prefix = "model.language_model.encoder.layers.0.mlp.dense_h_to_4h"
    halves = {f"{prefix}{end}.{part}": (6, 8) for end in ("", "_2") for part in ("weight", "bias")}
    found = find_tensors(Keys(halves), "a.nemo").model
    assert list(found) == [f"decoder.layers.0.mlp.linear_fc1.{part}" for part in ("weight", "bias")]
    assert {place.info.shape for place in found.values()} == {(12, 8)}


@pytest.mark.parametrize(
    "name",
    [
        "post_attention_normformer_norm.weight",
        "mlp.normalization.weight",
        "self_attention.head_scale_tensor",
        "inter_attention.query.weight",
    ],
)
def test_what_megatron_core_has_no_place_for_is_refused(name):
    key = f"model.language_model.encoder.layers.0.{name}"
    with pytest.raises(ContentError, match=f"{name}.*no place for it"):
        find_tensors(Keys({key: (8,)}), "a.nemo")


def test_an_adapter_that_is_not_lora_is_refused():
    key = "model.decoder.layers.0.mlp.adapter_layer.mlp_infused_adapter.scalers"
    with pytest.raises(ContentError, match="not LoRA"):
        find_tensors(Keys({key: (8,)}), "a.nemo")


def test_only_a_tied_model_gives_its_output_layer_away():
    untied = Architecture(**{**ARCH.__dict__, "share_embeddings_and_output_weights": False})
    found = find_tensors(Keys({"output_layer.weight": (9, 8)}), "a").model
    assert not without_copies(found, untied)
    assert list(without_copies(found, ARCH)) == ["embedding.word_embeddings.weight"]
    assert not found


def tensors(**changes):
    shapes = expected_shapes(ARCH, 16) | changes
    return {name: TensorInfo(s, "float32") for name, s in shapes.items() if s is not None}


def test_a_complete_model_passes():
    assert len(check_tensors(tensors(), ARCH, "m")) == 2 + 2 * 12 + 2


def test_what_has_no_embedding_is_no_language_model():
    with pytest.raises(ContentError, match=r"no word embedding.*It holds x"):
        check_tensors({"x": TensorInfo((1,), "float32")}, ARCH, "m.nemo")


def test_a_missing_tensor_is_named():
    with pytest.raises(ContentError, match=r"lacks .decoder\.final_layernorm\.bias"):
        check_tensors(tensors(**{"decoder.final_layernorm.bias": None}), ARCH, "m.nemo")


def test_an_unused_tensor_is_named_with_the_nearest_one():
    extra = {"decoder.layers.0.mlp.linear_fc2.weights": (8, 12)}
    with pytest.raises(ContentError, match=r"linear_fc2.weights.*Nearest .*linear_fc2.weight"):
        check_tensors(tensors(**extra), ARCH, "m.nemo")


def test_a_shape_that_contradicts_the_configuration_is_refused():
    wrong = {f"decoder.layers.1.{QKV}": (25, 8)}
    with pytest.raises(ShapeError, match=r"\[25, 8\], but its configuration asks for \[24, 8\]"):
        check_tensors(tensors(**wrong), ARCH, "m.nemo")


def test_learned_positions_of_another_length_are_refused():
    wrong = {"embedding.position_embeddings.weight": (100, 8)}
    with pytest.raises(ShapeError, match="100"):
        check_tensors(tensors(**wrong), ARCH, "m")
