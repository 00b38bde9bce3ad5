"""config.json: the original as it was, or only what the archive's settings changed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.hf_config import check_exportable, hf_files, respelled
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from tests.checkpoint.models import FIXTURES


def config_of(source, options=None):
    files, notes = hf_files(source, options or WriteOptions())
    return files["config.json"], notes


def changed(source, **fields):
    return replace(source, arch=Architecture(**{**source.arch.__dict__, **fields}))


def test_an_unchanged_model_gets_its_original_config_byte_for_byte(nemo_llama, hf_llama):
    content, notes = config_of(open_source(nemo_llama))
    assert content == (hf_llama / "config.json").read_bytes()
    assert notes == []


def test_only_the_dtype_changes_when_only_the_dtype_is_asked_for(nemo_llama, hf_llama):
    content, notes = config_of(open_source(nemo_llama), WriteOptions(dtype="bf16"))
    original = json.loads((hf_llama / "config.json").read_text())
    assert json.loads(content) == original | {"dtype": "bfloat16"}
    assert notes == []


def test_what_training_changed_is_written_over_the_original_and_said(nemo_llama, hf_llama):
    source = changed(open_source(nemo_llama), rotary_base=5e4, seq_len_interpolation_factor=2.0)
    content, notes = config_of(source)
    original = json.loads((hf_llama / "config.json").read_text())
    assert json.loads(content) == original | {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}
    }
    assert "rope_theta, rope_scaling" in notes[0]


def test_a_shorter_sequence_in_fine_tuning_changes_nothing(nemo_llama, hf_llama):
    source = changed(open_source(nemo_llama), encoder_seq_length=128)
    assert config_of(source)[0] == (hf_llama / "config.json").read_bytes()


def test_the_vocabulary_decides_over_the_original(nemo_llama):
    content, notes = config_of(replace(open_source(nemo_llama), vocab_size=60))
    assert json.loads(content)["vocab_size"] == 60
    assert "vocab_size" in notes[0]


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        (
            {"rope_theta": 1.0, "rope_scaling": None, "torch_dtype": "float32"},
            {"rope_theta": 2.0, "rope_scaling": None, "torch_dtype": "float16"},
        ),
        (
            {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}, "dtype": "float32"},
            {"rope_parameters": {"rope_theta": 2.0, "rope_type": "default"}, "dtype": "float16"},
        ),
        (
            {"rope_parameters": {"rope_theta": 1.0, "rope_type": "linear", "factor": 3.0}},
            {
                "rope_parameters": {"rope_theta": 2.0, "rope_type": "linear", "factor": 3.0},
                "torch_dtype": "float16",
            },
        ),
    ],
    ids=["4", "5", "5 scaled"],
)
def test_changes_follow_the_spelling_of_the_version_that_wrote_the_file(original, expected):
    assert respelled(original, {"rope_theta": 2.0, "torch_dtype": "float16"}) == expected


def test_an_original_of_an_unsupported_kind_is_overwritten(nemo_llama):
    source = open_source(nemo_llama)
    broken = (source.hf_config or {}) | {"hidden_act": "gelu"}
    content, notes = config_of(replace(source, hf_config=broken))
    assert json.loads(content)["hidden_act"] == "silu"
    assert notes


def test_a_gpt2_tokenizer_becomes_hugging_face_files():
    source = open_source(FIXTURES / "gpt_tp1_dist.nemo")
    llama = open_source(FIXTURES / "llama.nemo")
    files, _ = hf_files(replace(llama, config=source.config, files=source.files), WriteOptions())
    assert json.loads(files["tokenizer_config.json"])["tokenizer_class"] == "GPT2Tokenizer"
    assert len(json.loads(files["vocab.json"])) == 519
    assert files["merges.txt"].startswith(b"#version")
    assert json.loads(files["config.json"])["eos_token_id"] is None


def test_a_model_without_its_tokenizer_gets_none():
    files, _ = hf_files(open_source(FIXTURES / "llhf_dist_dir"), WriteOptions())
    assert list(files) == ["config.json"]


def test_exportable_is_what_a_family_knows():
    check_exportable(open_source(FIXTURES / "llama.nemo"))
    with pytest.raises(ContentError, match="can be inspected, trained and converted"):
        check_exportable(open_source(FIXTURES / "gpt_tp1_dist.nemo"))
