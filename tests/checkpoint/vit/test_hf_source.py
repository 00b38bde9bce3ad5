"""Reading Hugging Face's ViT, and telling it from its relatives."""

import json

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.vit.hf_source import is_hf_vit
from nemoalign.errors import ContentError, ShapeError
from tests.checkpoint.models import state_of
from tests.checkpoint.vits import save_hf, values_of

ATTENTION = "vit.encoder.layer.1.attention.attention"


def changed(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_query_key_and_value_are_packed_by_head(tmp_path):
    folder = save_hf(tmp_path / "hf")
    source, state = open_checkpoint(folder), state_of(folder)
    packed = source.weights.read(
        "backbone.transformer.layers.1.self_attention.query_key_value.weight"
    ).reshape(4, 3, 8, 32)
    for part, name in enumerate(("query", "key", "value")):
        whole = state[f"{ATTENTION}.{name}.weight"].numpy().reshape(4, 8, 32)
        assert np.array_equal(packed[:, part], whole)


def test_a_model_of_torch_files_is_the_same(tmp_path):
    folder = save_hf(tmp_path / "hf")
    before = values_of(folder)
    torch.save(state_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    after = values_of(folder)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_missing_biases_of_attention_are_zeros(tmp_path):
    source = open_checkpoint(save_hf(tmp_path / "hf", qkv_bias=False))
    name = "backbone.transformer.layers.0.self_attention.query_key_value.bias"
    assert source.weights.tensors[name].shape == (96,)
    assert not source.weights.read(name).any()


def test_how_images_are_prepared_is_said_when_it_is_not_nemos_way(tmp_path):
    folder = save_hf(tmp_path / "hf")
    assert "not known" in open_checkpoint(folder).warnings[0]
    prepared = folder / "preprocessor_config.json"
    prepared.write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    assert "mean [0.5, 0.5, 0.5]" in open_checkpoint(folder).warnings[0]
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    prepared.write_text(json.dumps({"image_mean": mean, "image_std": std}))
    assert open_checkpoint(folder).warnings == ()


def test_a_grid_nemo_cannot_restore_is_said(tmp_path):
    source = open_checkpoint(save_hf(tmp_path / "hf", image_size=[16, 32]))
    assert "no square number" in source.warnings[0]


def test_a_vit_without_classifier_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=8, image_size=8, patch_size=4)
    ViTModel(config).save_pretrained(tmp_path / "hf")
    with pytest.raises(ContentError, match="ViTModel, which has no classifier"):
        open_checkpoint(tmp_path / "hf")


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        ({"architectures": ["DeiTForImageClassification"]}, ContentError, "distillation token"),
        ({"model_type": "dinov2", "architectures": ["Dinov2Model"]}, ContentError, "another model"),
        ({"hidden_act": "relu"}, ContentError, "hidden_act 'relu'"),
        ({"patch_size": [4, 2]}, ContentError, "squares"),
        ({"image_size": "big"}, ContentError, "image_size"),
        ({"head_dim": 16}, ContentError, "head_dim 16"),
        ({"num_hidden_layers": 3}, ContentError, "lacks"),
        ({"num_hidden_layers": 1}, ContentError, "does not ask"),
        ({"intermediate_size": 64}, ShapeError, "intermediate"),
        ({"id2label": {"0": "one"}}, ShapeError, "classifier"),
        ({"hidden_size": "many"}, ContentError, "hidden_size"),
    ],
)
def test_a_config_nemo_has_no_model_for_is_refused(tmp_path, fields, error, sentence):
    with pytest.raises(error, match=sentence):
        open_checkpoint(changed(save_hf(tmp_path / "hf"), **fields))


def test_relatives_are_told_from_language_models():
    assert is_hf_vit({"model_type": "vit"})
    assert is_hf_vit({"architectures": ["ViTMAEForPreTraining"]})
    assert not is_hf_vit({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
