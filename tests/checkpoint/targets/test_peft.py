"""Adapters of NeMo written for PEFT, applied here by PEFT's rule: W + alpha / r * B @ A."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ContentError
from tests.checkpoint.models import FIXTURES

PREFIX = "base_model.model."


def logits_with(folder, ids):
    """Return the logits of ``hf_llama`` with the adapter in ``folder`` applied."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / "hf_llama", dtype=torch.float32)
    adapted = set()
    for name, module in model.named_modules():
        if any(f".{name}".endswith(f".{word}") for word in config["target_modules"]):
            into, out = (tensors.pop(f"{PREFIX}{name}.lora_{side}.weight") for side in "AB")
            assert into.shape[0] == config["r"]
            module.weight.data += config["lora_alpha"] / config["r"] * out @ into
            adapted.add(name.rpartition(".")[2])
    assert tensors == {}
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids).long()).logits.numpy(), adapted


def test_an_adapter_of_nemo_gives_nemos_logits_on_the_hugging_face_base(tmp_path, quiet):
    report = export(
        FIXTURES / "lora_tp1.nemo", tmp_path / "peft", adapter_only=True, reporter=quiet
    )
    stored = np.load(FIXTURES / "lora_tp1_logits.npz")
    found, adapted = logits_with(tmp_path / "peft", stored["input_ids"])
    assert np.abs(found - stored["logits"][..., :512]).max() < 2e-5
    assert len(adapted) == 7
    assert len(report["tensors"]) == 56
    assert not (tmp_path / "peft/model.safetensors").exists()


@pytest.mark.parametrize("name", ["peft_all", "peft_qv", "peft_rslora"])
def test_from_peft_to_nemo_and_back_nothing_changes(name, tmp_path, quiet):
    convert(FIXTURES / name, tmp_path / "a.nemo", reporter=quiet)
    export(tmp_path / "a.nemo", tmp_path / "back", adapter_only=True, reporter=quiet)
    theirs = load_file(FIXTURES / name / "adapter_model.safetensors")
    back = load_file(tmp_path / "back/adapter_model.safetensors")
    assert all(torch.equal(back.pop(key), value) for key, value in theirs.items())
    assert not any(value.any() for key, value in back.items() if "lora_B" in key)
    logits, _ = logits_with(tmp_path / "back", np.load(FIXTURES / "llama_logits.npz")["input_ids"])
    assert np.abs(logits - np.load(FIXTURES / name / "logits.npy")).max() < 1e-5


def test_from_nemo_to_peft_and_back_nothing_changes(tmp_path, quiet):
    export(FIXTURES / "lora_tp1.nemo", tmp_path / "peft", adapter_only=True, reporter=quiet)
    convert(tmp_path / "peft", tmp_path / "a.nemo", base=FIXTURES / "llama.nemo", reporter=quiet)
    first, second = (
        open_source(p).adapter for p in (FIXTURES / "lora_tp1.nemo", tmp_path / "a.nemo")
    )
    assert first.weights.tensors == second.weights.tensors
    for name in first.weights.tensors:
        np.testing.assert_array_equal(first.weights.read(name), second.weights.read(name))
    assert first.scale == second.scale


def test_an_adapter_beside_its_base_can_be_written_alone(tmp_path, quiet):
    export(
        FIXTURES / "llama.nemo",
        tmp_path / "peft",
        adapter=FIXTURES / "lora_tp1.nemo",
        adapter_only=True,
        reporter=quiet,
    )
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert "q_proj" in config["target_modules"]


def test_a_whole_model_has_no_adapter_to_write(tmp_path, quiet):
    with pytest.raises(ContentError, match="holds no LoRA adapter"):
        export(FIXTURES / "llama.nemo", tmp_path / "peft", adapter_only=True, reporter=quiet)
    assert not (tmp_path / "peft").exists()
