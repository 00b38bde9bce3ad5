"""Adapters that the peft library wrote, read in NeMo's names; logits are those peft computed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ContentError, ShapeError, SourceError
from tests.checkpoint.damage import unpack
from tests.checkpoint.models import FIXTURES, logits_of

IDS = np.load(FIXTURES / "llama_logits.npz")["input_ids"]
ATTENTION = "decoder.layers.0.self_attention.adapter_layer."
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def edited(tmp_path, change=lambda state: None, name="peft_qv", **settings):
    """Copy an adapter with other tensors or settings."""
    folder = shutil.copytree(FIXTURES / name, tmp_path / "edited")
    state = load_file(folder / "adapter_model.safetensors")
    change(state)
    save_file(state, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    shutil.copytree(FIXTURES / "hf_llama", tmp_path / "hf_llama", dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("name", ["peft_all", "peft_qv", "peft_rslora"])
@pytest.mark.parametrize("through_nemo", [False, True])
def test_merged_it_gives_the_logits_that_peft_computes(name, through_nemo, tmp_path, quiet):
    adapter = FIXTURES / name
    if through_nemo:
        convert(adapter, tmp_path / "a.nemo", reporter=quiet)
        adapter = tmp_path / "a.nemo"
    export(FIXTURES / "llama_tp2_ranks.nemo", tmp_path / "hf", adapter=adapter, reporter=quiet)
    found = logits_of(tmp_path / "hf", IDS)
    assert np.abs(found - np.load(FIXTURES / name / "logits.npy")).max() < 1e-5


def test_gpt2_keeps_its_weights_the_other_way_round_but_not_its_adapters(tmp_path, quiet):
    """c_attn is one Conv1D of q, k and v; its rows interleave in NeMo."""
    convert(FIXTURES / "peft_gpt2", tmp_path / "a.nemo", reporter=quiet)
    base = FIXTURES / "hf_gpt2"
    export(base, tmp_path / "hf", adapter=tmp_path / "a.nemo", reporter=quiet)
    found = logits_of(tmp_path / "hf", IDS % 32)
    assert np.abs(found - np.load(FIXTURES / "peft_gpt2/logits.npy")).max() < 1e-5
    export(tmp_path / "a.nemo", tmp_path / "back", adapter_only=True, reporter=quiet)
    theirs = load_file(FIXTURES / "peft_gpt2/adapter_model.safetensors")
    back = load_file(tmp_path / "back/adapter_model.safetensors")
    assert all(torch.equal(back.pop(key), value) for key, value in theirs.items())
    config = json.loads((tmp_path / "back/adapter_config.json").read_text())
    assert config["fan_in_fan_out"]
    assert sorted(config["target_modules"]) == ["c_attn", "mlp.c_proj"]


def test_separate_inputs_become_nemos_canonical_variant(tmp_path, quiet):
    convert(FIXTURES / "peft_all", tmp_path / "a.nemo", reporter=quiet)
    folder = unpack(tmp_path / "a.nemo", tmp_path / "a")
    saved = torch.load(folder / "model_weights.ckpt", weights_only=True)
    theirs = load_file(FIXTURES / "peft_all/adapter_model.safetensors")
    unfused = f"model.{ATTENTION}lora_unfused_kqv_adapter.k_adapter.linear_"
    prefix = "base_model.model.model.layers.0."
    for side, letter in (("in", "A"), ("out", "B")):
        expected = theirs[f"{prefix}self_attn.k_proj.lora_{letter}.weight"]
        assert torch.equal(saved[f"{unfused}{side}.weight"], expected)
    assert len(saved) == len(theirs)


def test_the_recorded_base_gives_configuration_and_tokenizer():
    source = open_source(FIXTURES / "peft_qv")
    assert source.is_adapter_only
    assert source.arch == open_source(FIXTURES / "hf_llama").arch
    assert (source.adapter.dim, source.adapter.scale) == (3, pytest.approx(2 / 3))
    assert source.config["peft"]["lora_tuning"]["target_modules"] == ["attention_qkv"]
    assert source.adapter.base == str(FIXTURES / "hf_llama")


def test_a_module_that_peft_left_alone_is_zero():
    adapter = open_source(FIXTURES / "peft_qv").adapter
    part = f"{ATTENTION}lora_unfused_kqv_adapter.k_adapter.linear_"
    assert adapter.weights.read(f"{part}out.weight").shape == (32, 3)
    assert not adapter.weights.read(f"{part}out.weight").any()
    assert adapter.weights.read(f"{part}in.weight").any()


def test_a_base_that_is_not_there_is_named_with_what_to_type(tmp_path, quiet):
    folder = shutil.copytree(FIXTURES / "peft_qv", tmp_path / "alone")
    with pytest.raises(SourceError, match=r"adapter of hf_llama, which is not there.*--base BASE"):
        open_source(folder)
    convert(folder, tmp_path / "a.nemo", base=FIXTURES / "llama.nemo", reporter=quiet)
    recorded = open_source(tmp_path / "a.nemo").config["restore_from_path"]
    assert recorded == str(FIXTURES / "llama.nemo")


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"init_lora_weights": "pissa"},
        {"some_later_setting": 1},
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(settings, tmp_path):
    (name,) = settings
    with pytest.raises(ContentError, match=name):
        open_source(edited(tmp_path, **settings))


def test_another_kind_of_adapter_is_refused(tmp_path):
    with pytest.raises(ContentError, match="type PREFIX_TUNING"):
        open_source(edited(tmp_path, peft_type="PREFIX_TUNING"))


def test_tensors_that_nothing_uses_are_refused(tmp_path):
    def add(state):
        state["base_model.model.lm_head.lora_A.weight"] = torch.ones(3, 64)

    with pytest.raises(ContentError, match=r"lm_head\.lora_A"):
        open_source(edited(tmp_path, add))


def test_half_an_adapter_is_refused(tmp_path):
    with pytest.raises(ContentError, match=r"lacks .*q_proj\.lora_A"):
        open_source(edited(tmp_path, lambda state: state.pop(Q)))


def test_matrices_of_another_model_are_refused(tmp_path):
    def change(state):
        state[Q] = torch.ones(3, 32)

    with pytest.raises(ShapeError, match=r"q_proj is \[64, 3\] x \[3, 32\].*64 x 64"):
        open_source(edited(tmp_path, change))


def test_another_rank_than_recorded_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="LoRA rank 5"):
        open_source(edited(tmp_path, r=5))


def test_an_adapter_saved_with_torch_is_read(tmp_path, quiet):
    folder = edited(tmp_path)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    export(tmp_path / "hf_llama", tmp_path / "hf", adapter=folder, reporter=quiet)
    found = logits_of(tmp_path / "hf", IDS)
    assert np.abs(found - np.load(FIXTURES / "peft_qv/logits.npy")).max() < 1e-5
