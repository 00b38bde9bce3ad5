"""The model_config.yaml we write against the one NVIDIA's converter wrote for the same model."""

from __future__ import annotations

import json

import pytest

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.nemo_config import nemo_config, provenance, tokenizer_section
from nemoalign.checkpoint.settings.vocabulary import SentencePieces
from nemoalign.errors import ContentError
from nemoalign.families.llama import FAMILY
from tests.checkpoint.models import FIXTURES

HF = json.loads((FIXTURES / "hf_llama/config.json").read_text())
TRAINING = {"micro_batch_size", "data", "optim", "nsys_profile", "fp8_hybrid"}
TRAINING |= {"fp8_amax_history_len", "fp8_amax_compute_algo", "nemo_version", "tokenizer"}


def test_every_setting_nemos_converter_writes_is_there_with_its_value():
    theirs = open_source(FIXTURES / "llama.nemo").config
    ours = nemo_config(FAMILY, HF, {}, 512)
    assert theirs.keys() - ours.keys() == {"precision"}  # the opened weights decide
    for key in theirs.keys() - TRAINING - {"precision"}:
        assert ours[key] == theirs[key], key
    assert theirs["data"].keys() == ours["data"].keys()
    assert theirs["optim"]["sched"].keys() == ours["optim"]["sched"].keys()


@pytest.mark.parametrize(
    ("vocab_size", "tokens", "multiple", "override"),
    [
        (32000, 32000, 128, None),
        (49152, 49152, 128, None),
        (519, 519, 1, None),
        (50304, 50257, 128, None),
        (151936, 151646, 128, 151936),
        (32000, None, 128, None),
    ],
)
def test_nemo_arrives_at_the_same_number_of_rows(vocab_size, tokens, multiple, override):
    config = nemo_config(FAMILY, HF | {"vocab_size": vocab_size}, {}, tokens)
    assert config["make_vocab_size_divisible_by"] == multiple
    assert config.get("override_vocab_size") == override
    rows = -(-(tokens or vocab_size) // multiple) * multiple
    assert (override or rows) == vocab_size


@pytest.mark.parametrize("size", [None, 0, "many"])
def test_a_vocabulary_without_a_size_is_refused(size):
    with pytest.raises(ContentError, match="vocab_size"):
        nemo_config(FAMILY, HF | {"vocab_size": size}, {}, None)


def test_two_configurations_share_nothing():
    first, second = (nemo_config(FAMILY, HF, {}, 512) for _ in range(2))
    first["optim"]["sched"]["warmup_steps"] = 0
    assert second["optim"]["sched"]["warmup_steps"] == 500


def test_our_own_section_names_family_and_vocabulary():
    section = provenance(FAMILY, 512)
    assert section["family"] == "llama"
    assert section["vocab_size"] == 512
    assert "vocab_size" not in provenance(FAMILY, None)


def test_a_tokenizer_of_the_hub_is_named_as_nemo_names_it():
    model = SentencePieces(("a",) * 512)
    named = {"vocab_size": 512, "_name_or_path": "meta-llama/Llama-3.2-1B"}
    local = {"vocab_size": 512, "_name_or_path": "./models/mine"}
    assert tokenizer_section(None, None, named, "x")["type"] == "meta-llama/Llama-3.2-1B"
    assert tokenizer_section(None, None, local, "mine")["type"] == "mine"
    section = tokenizer_section(model, "00_tokenizer.model", local, "mine")
    assert (section["library"], section["model"]) == ("sentencepiece", "nemo:00_tokenizer.model")
    assert section["sentencepiece_legacy"] is False
