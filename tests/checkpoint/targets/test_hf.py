"""A Hugging Face directory of ours, and that a faulty one is never published."""

from __future__ import annotations

import json
import zlib

import pytest

from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.targets.hf import write_hf
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ConflictError, VerificationError
from tests.checkpoint.models import FIXTURES, BitFlip, assert_same_tensors, state_of


def test_the_directory_holds_the_model_its_files_and_the_report(nemo_llama, tmp_path, quiet):
    export(nemo_llama, tmp_path / "hf", reporter=quiet)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == [
        "config.json",
        "conversion.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_report_maps_every_tensor_with_its_checksum(nemo_llama, tmp_path, quiet):
    report = export(nemo_llama, tmp_path / "hf", reporter=quiet)
    state = state_of(tmp_path / "hf")
    reported = {
        name: crc
        for row in report["tensors"]
        for name, crc in zip(row["target"], row["crc32"], strict=True)
    }
    assert reported == {
        name: f"{zlib.crc32(tensor.numpy().tobytes()):08x}" for name, tensor in state.items()
    }
    rows = {row["source"]: row["target"] for row in report["tensors"]}
    assert rows["decoder.layers.1.self_attention.linear_qkv.weight"] == {
        "model.layers.1.self_attn.q_proj.weight": [32, 32],
        "model.layers.1.self_attn.k_proj.weight": [16, 32],
        "model.layers.1.self_attn.v_proj.weight": [16, 32],
    }


def test_padding_rows_of_the_vocabulary_are_not_exported(tmp_path, quiet):
    """llhf has 640 rows for a 519-token vocabulary; with the size known, 519 are written."""
    source = open_source(FIXTURES / "llhf_dist_dir")
    object.__setattr__(source, "vocab_size", 519)
    write_hf(source, tmp_path / "hf", WriteOptions(), quiet)
    state = state_of(tmp_path / "hf")
    assert state["model.embed_tokens.weight"].shape == (519, 64)
    assert state["lm_head.weight"].shape == (519, 64)
    assert json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"] == 519


def test_bytes_that_change_after_writing_fail_the_export(nemo_llama, tmp_path):
    with pytest.raises(VerificationError, match="is not what was written"):
        export(nemo_llama, tmp_path / "hf", reporter=BitFlip(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_existing_export_is_replaced_only_when_told(nemo_llama, hf_llama, tmp_path, quiet):
    export(FIXTURES / "llama.nemo", tmp_path / "hf", reporter=quiet)
    with pytest.raises(ConflictError, match="exists"):
        export(nemo_llama, tmp_path / "hf", reporter=quiet)
    assert_same_tensors(tmp_path / "hf", FIXTURES / "hf_llama")
    export(nemo_llama, tmp_path / "hf", WriteOptions(overwrite=True), reporter=quiet)
    assert_same_tensors(tmp_path / "hf", hf_llama)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
