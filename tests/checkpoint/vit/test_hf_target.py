"""Exporting a ViT: NeMo's own file gives NeMo's logits in transformers; the rest is refused by name."""

import json

import numpy as np
import pytest
import torch

from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ConfigError, ContentError, VerificationError
from tests.checkpoint.models import BitFlip, state_of
from tests.checkpoint.vits import (
    NEMO_VIT,
    TOLERANCE,
    expected_logits,
    fixture_state,
    logits_of,
    save_nemo,
)
from tests.cli.running import run


def resized(state, **shapes):
    """Return the state with some tensors of another shape."""
    return state | {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def test_nemos_own_classifier_has_its_logits_in_transformers(tmp_path):
    ended = run("export", NEMO_VIT, "-o", tmp_path / "hf")
    assert ended.code == 0, ended.err
    assert not {"torch", "transformers", "megatron"} & ended.modules
    pixels, expected = expected_logits()
    assert np.abs(logits_of(tmp_path / "hf", pixels) - expected).max() < TOLERANCE


def test_the_directory_says_how_nemo_prepares_images(tmp_path, quiet):
    export(NEMO_VIT, tmp_path / "hf", reporter=quiet)
    prepared = json.loads((tmp_path / "hf/preprocessor_config.json").read_text())
    assert prepared["image_mean"] == [0.485, 0.456, 0.406]
    assert prepared["image_std"] == [0.229, 0.224, 0.225]
    assert prepared["size"] == {"height": 16, "width": 16}
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert (config["hidden_act"], config["layer_norm_eps"]) == ("gelu", 1e-5)
    assert len(config["id2label"]) == 10


@pytest.mark.parametrize(
    ("settings", "act"),
    [
        ({"openai_gelu": True}, "gelu_pytorch_tanh"),
        ({"bias_activation_fusion": True}, "gelu_pytorch_tanh"),
        ({"activation": "approx-gelu"}, "quick_gelu"),
    ],
)
def test_the_activation_nemo_computes_is_named(tmp_path, quiet, settings, act):
    path = save_nemo(tmp_path / "m.nemo", fixture_state(), **settings)
    export(path, tmp_path / "hf", reporter=quiet)
    assert json.loads((tmp_path / "hf/config.json").read_text())["hidden_act"] == act


def test_the_element_type_can_be_changed(tmp_path, quiet):
    export(NEMO_VIT, tmp_path / "hf", WriteOptions(dtype="bf16"), reporter=quiet)
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == "bfloat16"
    state = state_of(tmp_path / "hf")
    assert torch.equal(state["classifier.weight"], fixture_state()["head.weight"].bfloat16())


def pretraining(state):
    head = {"head.dense_in.weight": state["head.weight"].new_zeros(64, 64)}
    head |= {"head.dense_in.bias": torch.zeros(64), "head.dense_out.weight": state["head.weight"]}
    head |= {"head.dense_out.bias": state["head.bias"]}
    return {n: t for n, t in state.items() if not n.startswith("head.")} | head


def wide_heads(state):
    shapes = {".query_key_value.weight": (384, 64), ".query_key_value.bias": (384,)}
    shapes["self_attention.dense.weight"] = (64, 128)
    for name in list(state):
        for end, shape in shapes.items():
            if name.endswith(end):
                state[name] = torch.zeros(shape)
    return state


def without_norm_biases(state):
    return {name: tensor for name, tensor in state.items() if "layernorm.bias" not in name}


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        (
            lambda state: resized(
                state,
                backbone__cls_token=(1, 8, 64),
                backbone__position_embeddings__weight=(24, 64),
            ),
            {"class_token_length": None},
            "8 class tokens",
        ),
        (pretraining, {"finetune": False}, "pretraining head"),
        (without_norm_biases, {"normalization": "rmsnorm"}, "its norms are rmsnorm"),
        (
            lambda state: resized(
                state,
                backbone__preprocess_layernorm__weight=(64,),
                backbone__preprocess_layernorm__bias=(64,),
            ),
            {"preprocess_layernorm": True},
            "preprocess_layernorm",
        ),
        (lambda state: state, {"activation": "squared-relu"}, "its activation is squared-relu"),
        (
            lambda state: state,
            {"activation": "approx-gelu", "bias_activation_fusion": True},
            "its activation is approx-gelu",
        ),
        (wide_heads, {"kv_channels": 32}, "kv_channels"),
    ],
    ids=["K", "head", "rmsnorm", "preprocess", "activation", "fusion", "kv_channels"],
)
def test_what_hugging_face_has_not_is_refused_by_name(tmp_path, quiet, change, settings, reason):
    path = save_nemo(tmp_path / "m.nemo", change(fixture_state()), **settings)
    with pytest.raises(ContentError, match=reason):
        export(path, tmp_path / "hf", reporter=quiet)
    assert not (tmp_path / "hf").exists()


def test_flags_of_language_models_are_refused(tmp_path, quiet):
    with pytest.raises(ConfigError, match="--adapter"):
        export(NEMO_VIT, tmp_path / "hf", adapter=NEMO_VIT, reporter=quiet)
    with pytest.raises(ConfigError, match="--tokenizer"):
        export(NEMO_VIT, tmp_path / "hf", WriteOptions(tokenizer=tmp_path), reporter=quiet)


def test_bytes_that_change_after_writing_fail_the_export(tmp_path):
    with pytest.raises(VerificationError, match="is not what was written"):
        export(NEMO_VIT, tmp_path / "hf", reporter=BitFlip(tmp_path))
    assert not list(tmp_path.iterdir())
