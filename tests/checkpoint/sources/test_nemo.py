"""A NeMo archive's configuration, tokenizer files and warnings."""

from __future__ import annotations

import shutil
import tarfile

import pytest

from nemoalign.archive.files import Region
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.nemo import read_json_object
from nemoalign.errors import ContentError, ShapeError, SourceError
from tests.checkpoint.models import FIXTURES


@pytest.fixture
def folder(tmp_path):
    """The llama archive, unpacked, to be changed."""
    with tarfile.open(FIXTURES / "llama.nemo") as tar:
        tar.extractall(tmp_path / "m", filter="data")
    return tmp_path / "m"


def edit(folder, old, new):
    path = folder / "model_config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_settings_are_resolved_but_kept_as_stored_too(folder):
    edit(folder, "max_position_embeddings: 128", "max_position_embeddings: ${.encoder_seq_length}")
    edit(folder, "seed: 1234", "seed: ???")
    source = open_source(folder)
    assert source.config["max_position_embeddings"] == 128
    assert source.stored_config["max_position_embeddings"] == "${.encoder_seq_length}"
    assert source.config["seed"] is None
    assert source.stored_config["seed"] == "???"
    assert source.arch.max_position_embeddings == 128


def test_tokenizer_files_come_under_the_names_the_settings_use():
    source = open_source(FIXTURES / "gpt_tp1_dist.nemo")
    section = source.config["tokenizer"]
    names = {section[key].removeprefix("nemo:") for key in ("vocab_file", "merge_file")}
    assert set(source.files) == names
    content = source.files[section["merge_file"].removeprefix("nemo:")].read(10_000)
    assert content.startswith(b"#version")


def test_the_models_own_section_may_wrap_the_settings(folder):
    path = folder / "model_config.yaml"
    lines = ["model:", *("  " + line for line in path.read_text().splitlines())]
    path.write_text("\n".join(lines))
    assert open_source(folder).arch.num_layers == 4


def test_a_missing_tokenizer_is_a_warning_and_keeps_every_row():
    source = open_source(FIXTURES / "llhf_dist_dir")
    assert source.vocab_size == 640
    assert "--tokenizer HF_DIR" in source.warnings[0]


def test_positions_scaled_twice_are_read_as_written_with_a_warning(folder):
    edit(
        folder,
        "scale_positional_embedding: false",
        "scale_positional_embedding: true\nseq_len_interpolation_factor: 8",
    )
    source = open_source(folder)
    assert source.arch.seq_len_interpolation_factor == 8
    assert "scales its rotary positions twice" in source.warnings[0]


def test_a_window_is_read_as_written_with_a_warning(folder):
    edit(folder, "rotary_base", "window_size: [4, 0]\nrotary_base")
    source = open_source(folder)
    assert source.arch.window_size == (4, 0)
    assert source.family.name == "mistral"
    assert "a query sees 5 positions" in source.warnings[0]
    assert "set it to [3, 0]" in source.warnings[0]


@pytest.mark.parametrize(
    ("old", "new", "error", "match"),
    [
        ("num_layers: 4", "num_layers: 5", ContentError, "decoder.layers.4"),
        ("num_layers: 4", "num_layers: 3", ContentError, "decoder.layers.3"),
        ("ffn_hidden_size: 128", "ffn_hidden_size: 64", ShapeError, "linear_fc1.weight"),
        ("num_query_groups: 2", "num_query_groups: 4", ShapeError, "linear_qkv.weight"),
        ("bias: false", "bias: true", ContentError, "bias"),
        ("hidden_size: 64", "hidden_size: tall", ContentError, "tall"),
        ("MegatronGPTModel", "MegatronT5Model", ContentError, "MegatronT5Model"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(folder, old, new, error, match):
    edit(folder, old, new)
    with pytest.raises(error, match=match):
        open_source(folder)


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder):
    (folder / "hf").mkdir()
    (folder / "hf/config.json").write_text('{"vocab_size": 600}')
    with pytest.raises(ContentError, match="600 tokens but only 512 rows"):
        open_source(folder)


def test_an_archive_without_settings_lists_what_it_holds(tmp_path):
    with tarfile.open(tmp_path / "x.nemo", "w") as tar:
        tar.add(FIXTURES / "hf_llama/config.json", "readme.json")
    with pytest.raises(SourceError, match=r"holds no model_config\.yaml.*readme\.json"):
        open_source(tmp_path / "x.nemo")


def test_a_file_that_must_be_json_is_checked(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json_object(Region(tmp_path / "a.json", 0, 8), "a.json") == {"a": 1}
    with pytest.raises(SourceError, match=r"a\.json is not valid JSON"):
        read_json_object(Region(tmp_path / "a.json", 0, 5), "a.json")


def test_the_target_of_an_archive_is_a_label_and_never_imported(folder):
    edit(folder, "megatron_gpt_model.MegatronGPTModel", "os.system")
    assert open_source(folder).config["target"].endswith("os.system")
    shutil.rmtree(folder)


def test_learned_positions_may_be_sized_by_either_of_nemos_two_fields(tmp_path):
    with tarfile.open(FIXTURES / "gpt_tp1_dist.nemo") as tar:
        tar.extractall(tmp_path / "m", filter="data")
    edit(tmp_path / "m", "\nencoder_seq_length: 128\n", "\nencoder_seq_length: 64\n")
    source = open_source(tmp_path / "m")
    assert source.weights.tensors["embedding.position_embeddings.weight"].shape[0] == 128
    assert source.arch.encoder_seq_length == 128
    assert source.config["encoder_seq_length"] == source.stored_config["encoder_seq_length"] == 128
