"""What a checkpoint brings into the merge, and which of it is locked."""

import pytest

from nemoalign.config.merged import flattened
from nemoalign.errors import ConfigError, ContentError
from tests.config.merging import CHECKPOINT, merge


def test_the_checkpoint_brings_architecture_tokenizer_and_template_but_no_training_settings(
    tmp_path,
):
    merged = merge(tmp_path, checkpoint=CHECKPOINT)
    flat = flattened(merged.tree)
    assert flat["model.num_layers"] == 4
    assert merged.sources["model.num_layers"] == "checkpoint m.nemo"
    assert merged.config.model.encoder_seq_length == 256
    assert merged.config.model.data.train_ds.prompt_template == "Q {q} A {a}"
    assert flat["model.tokenizer.model"] == "nemo:abc_tokenizer.json"
    assert merged.config.model.optim.lr == 1e-5
    assert merged.config.model.global_batch_size == 64
    assert merged.config.model.tensor_model_parallel_size == 1
    assert merged.config.model.hidden_dropout == 0.0
    assert merged.config.trainer.precision == "bf16"
    assert merged.config.model.data.train_ds.file_path == ()
    assert merged.checkpoint_config["something_unread"] == {"kept": [1, 2]}
    assert merged.checkpoint_config["optim"]["lr"] == 9.0


@pytest.mark.parametrize(
    ("layer", "where"),
    [
        ({"sets": ["model.num_layers=30"]}, "--set"),
        ({"files": ["model: {num_layers: 30}"]}, "file0.yaml"),
        ({"environ": {"NEMOALIGN_MODEL__NUM_LAYERS": "30"}}, "NEMOALIGN_MODEL__NUM_LAYERS"),
    ],
)
def test_a_locked_key_is_refused_by_name_with_both_values(tmp_path, layer, where):
    with pytest.raises(ContentError) as refusal:
        merge(tmp_path, layer.pop("files", ()), checkpoint=CHECKPOINT, **layer)
    text = str(refusal.value)
    assert "model.num_layers is 4 in checkpoint m.nemo and 30" in text
    assert where in text


@pytest.mark.parametrize(
    "same",
    ["num_layers: 4", "num_layers: null", "kv_channels: 16", "bias: true", "rotary_base: 10000"],
)
def test_naming_the_value_a_locked_key_has_anyway_is_allowed(tmp_path, same):
    merged = merge(tmp_path, [f"model: {{{same}}}"], checkpoint=CHECKPOINT)
    assert merged.checkpoint_config["num_layers"] == 4


def test_the_tokenizer_inside_a_checkpoint_is_locked_and_a_missing_one_can_be_named(tmp_path):
    other = ["model.tokenizer.model=/tokenizers/x.model"]
    with pytest.raises(ContentError, match=r"model\.tokenizer\.model is 'nemo:abc"):
        merge(tmp_path, checkpoint=CHECKPOINT, sets=other)
    outside = {**CHECKPOINT, "tokenizer": {"library": "sentencepiece", "model": None}}
    merged = merge(tmp_path, checkpoint=outside, sets=other)
    assert merged.checkpoint_config["tokenizer"]["model"] == "/tokenizers/x.model"


def test_overwrite_base_config_drops_what_it_names_from_the_checkpoint(tmp_path):
    drop = "model: {overwrite_base_config: {data: {train_ds: {prompt_template: %s}}}}"
    kept = merge(tmp_path, [drop % "false"], checkpoint=CHECKPOINT)
    assert kept.config.model.data.train_ds.prompt_template == "Q {q} A {a}"
    dropped = merge(tmp_path, [drop % "true"], checkpoint=CHECKPOINT)
    assert dropped.config.model.data.train_ds.prompt_template is None
    assert dropped.checkpoint_config["data"] == {"train_ds": {"file_path": "old.jsonl"}}
    with pytest.raises(ConfigError, match="must be true or false"):
        merge(tmp_path, [drop % "3"], checkpoint=CHECKPOINT)
    with pytest.raises(ContentError, match=r"model\.num_layers"):
        merge(
            tmp_path,
            ["model: {overwrite_base_config: {num_layers: true}}"],
            checkpoint=CHECKPOINT,
        )
