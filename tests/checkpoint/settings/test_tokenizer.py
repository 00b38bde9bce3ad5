"""Giving an archive the tokenizer it lacks."""

from __future__ import annotations

import json

import pytest
import torch

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.tokenizer import with_tokenizer
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.models import FIXTURES, state_of, tokenizer_json

BARE = FIXTURES / "llhf_dist_dir"


@pytest.fixture
def folder(tmp_path):
    """A folder with a fast tokenizer of 519 tokens."""
    path = tmp_path / "my-tokenizer"
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_json(519)))
    (path / "tokenizer_config.json").write_text("{}")
    (path / "README.md").write_text("not part of it")
    return path


def test_without_a_path_nothing_changes():
    source = open_source(BARE)
    assert with_tokenizer(source, None) is source


def test_a_size_that_was_only_the_number_of_rows_is_not_recorded(folder, tmp_path, quiet):
    convert(BARE, tmp_path / "bare.nemo", reporter=quiet)
    assert open_source(tmp_path / "bare.nemo").warnings
    assert with_tokenizer(open_source(tmp_path / "bare.nemo"), folder).vocab_size == 519


def test_an_embedded_tokenizer_decides_the_vocabulary_and_travels(folder, tmp_path, quiet):
    convert(BARE, tmp_path / "m.nemo", WriteOptions(tokenizer=folder), reporter=quiet)
    source = open_source(tmp_path / "m.nemo")
    assert source.vocab_size == 519
    assert source.warnings == ()
    assert source.config["tokenizer"]["type"] == "my-tokenizer"
    assert set(source.files) == {"hf/tokenizer.json", "hf/tokenizer_config.json"}


def test_an_export_with_a_tokenizer_writes_it_and_trims_the_padding(folder, tmp_path, quiet):
    convert(BARE, tmp_path / "hf", WriteOptions(tokenizer=folder), reporter=quiet)
    assert (tmp_path / "hf/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    whole = torch.tensor(open_source(BARE).weights.read("output_layer.weight"))
    assert torch.equal(state_of(tmp_path / "hf")["lm_head.weight"], whole[:519])


def test_a_sentencepiece_file_is_registered_as_nemos_artifact(tmp_path):
    model = FIXTURES / "hf_llama/tokenizer.model"
    source = with_tokenizer(open_source(BARE), model)
    section = source.config["tokenizer"]
    assert section["library"] == "sentencepiece"
    content = source.files[section["model"].removeprefix("nemo:")].read(1 << 20)
    assert content == model.read_bytes()
    assert source.vocab_size == 512


def test_a_models_own_vocabulary_stays(folder, nemo_llama):
    source = with_tokenizer(open_source(FIXTURES / "llama.nemo"), FIXTURES / "hf_llama")
    assert source.vocab_size == 512
    kept = with_tokenizer(open_source(nemo_llama), folder)
    assert kept.vocab_size == 61
    assert "hf/config.json" in kept.files


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(folder):
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(700)))
    with pytest.raises(ContentError, match="700 tokens but only 640 rows"):
        with_tokenizer(open_source(BARE), folder)


def test_a_path_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        with_tokenizer(open_source(BARE), tmp_path / "absent")
    (tmp_path / "x.txt").touch()
    with pytest.raises(SourceError, match=r"holds none of tokenizer\.json"):
        with_tokenizer(open_source(BARE), tmp_path)
