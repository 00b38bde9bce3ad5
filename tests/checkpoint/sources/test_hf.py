"""A Hugging Face directory opened as if it were a ``.nemo``."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nemoalign.archive.files import open_container
from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.hf import kept_files, registered_tokenizer
from nemoalign.errors import ContentError, ShapeError
from tests.checkpoint.models import FIXTURES, save_llama, state_of


@pytest.fixture
def model(hf_llama, tmp_path):
    """A copy of the tiny llama, to be changed."""
    return shutil.copytree(hf_llama, tmp_path / "model")


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_settings_are_what_a_nemo_of_it_would_say(hf_llama, nemo_llama):
    ours, converted = open_source(hf_llama), open_source(nemo_llama)
    assert ours.arch == converted.arch
    assert ours.vocab_size == converted.vocab_size == 61
    differing = {k for k in converted.config if converted.config[k] != ours.config.get(k)}
    assert differing == {"nemoalign"}
    assert set(ours.files) == set(converted.files)


def test_tensors_are_what_transformers_holds(hf_llama):
    source, state = open_source(hf_llama), state_of(hf_llama)
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    halves = [state[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    np.testing.assert_array_equal(source.weights.read(name), torch.cat(halves).numpy())
    np.testing.assert_array_equal(
        source.weights.read(name, (slice(40, 60),)), torch.cat(halves)[40:60].numpy()
    )
    assert source.weights.tensors["output_layer.weight"].shape == (61, 32)


def test_a_missing_tensor_is_named(model):
    edit_tensors(model, lambda state: state.pop("model.norm.weight"))
    with pytest.raises(ContentError, match=r"lacks .model\.norm\.weight"):
        open_source(model)


def test_a_tensor_nobody_uses_is_named(model):
    edit_tensors(model, lambda state: state.update({"model.norm.bias": torch.zeros(32)}))
    with pytest.raises(ContentError, match=r"holds .model\.norm\.bias"):
        open_source(model)


def test_rotary_buffers_of_old_exports_are_dropped(model, hf_llama, tmp_path, quiet):
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(3)}
    edit_tensors(model, lambda state: state.update(old))
    convert(model, tmp_path / "m.nemo", reporter=quiet)
    export(tmp_path / "m.nemo", tmp_path / "back", reporter=quiet)
    assert state_of(tmp_path / "back").keys() == state_of(hf_llama).keys()


def test_a_config_of_another_size_is_a_shape_error(model):
    edit_config(model, intermediate_size=64)
    with pytest.raises(ShapeError, match=r"gate_proj.weight. has shape \[48, 32\].*\[64, 32\]"):
        open_source(model)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"architectures": ["BertModel"]}, "BertModel"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_field(model, changes, match):
    edit_config(model, **changes)
    with pytest.raises(ContentError, match=match):
        open_source(model)


def test_a_tied_model_that_saved_its_head_is_read_when_the_two_are_equal(tmp_path, quiet):
    folder = save_llama(tmp_path / "tied", tie_word_embeddings=True)
    embedding = state_of(folder)["model.embed_tokens.weight"]
    edit_tensors(folder, lambda state: state.update({"lm_head.weight": embedding.clone()}))
    convert(folder, tmp_path / "m.nemo", reporter=quiet)
    edit_tensors(folder, lambda state: state.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(ContentError, match="tie_word_embeddings"):
        convert(folder, tmp_path / "n.nemo", reporter=quiet)


def test_parts_of_one_tensor_in_different_dtypes_are_refused(model):
    name = "model.layers.0.self_attn.k_proj.weight"
    edit_tensors(model, lambda state: state.update({name: state[name].bfloat16()}))
    with pytest.raises(ContentError, match="bfloat16, float32"):
        open_source(model)


def test_norms_may_be_kept_in_another_dtype_than_matrices(model, tmp_path, quiet):
    def halve(state):
        state.update({n: t.bfloat16() for n, t in state.items() if "norm" not in n})

    edit_tensors(model, halve)
    convert(model, tmp_path / "m.nemo", reporter=quiet)
    export(tmp_path / "m.nemo", tmp_path / "back", reporter=quiet)
    expected, found = state_of(model), state_of(tmp_path / "back")
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in expected.items()}
    assert open_source(tmp_path / "m.nemo").dtypes == ("bfloat16", "float32")


def test_a_sentencepiece_model_is_registered_as_nemo_does():
    files = kept_files(open_container(FIXTURES / "hf_llama"))
    section, tokens = registered_tokenizer({"vocab_size": 512}, files, "hf_llama")
    assert section["library"] == "sentencepiece"
    assert section["model"].removeprefix("nemo:") in files
    assert tokens == 512


def test_a_sentencepiece_model_that_lacks_added_tokens_is_left_to_transformers():
    files = kept_files(open_container(FIXTURES / "hf_llama"))
    section, tokens = registered_tokenizer({"vocab_size": 520}, files, "my-model")
    assert (section["library"], section["type"]) == ("huggingface", "my-model")
    assert tokens is None
    assert all(name.startswith("hf/") for name in files)


@pytest.mark.parametrize("tied", [False, True])
def test_torch_files_read_like_safetensors(tied, tmp_path):
    """transformers of before 2023 saved the state_dict itself, with a tied head under both names."""
    folder = save_llama(tmp_path / "new", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "model.safetensors").unlink()
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    found, expected = open_source(old), open_source(folder)
    assert (found.layout, expected.layout) == ("pytorch_model.bin", "safetensors")
    assert list(found.copies.tensors) == ["embedding.word_embeddings.weight"] * tied
    assert found.weights.tensors == expected.weights.tensors
    for name in expected.weights.tensors:
        np.testing.assert_array_equal(found.weights.read(name), expected.weights.read(name))
