"""Unknown and wrong keys: the answer names the key, where it stands and the nearest one."""

import pytest

from nemoalign.errors import ConfigError
from tests.config.merging import merge


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("model: [", ConfigError, "not valid YAML"),
        ("- 1", ConfigError, "holds no settings"),
        ("model: {optim: {lrr: 1}}", ConfigError, "Did you mean model.optim.lr (--lr)?"),
        ("model: {optim: 5}", ConfigError, "that is a section"),
        ("trainer: {stf: {max_steps: 3}}", ConfigError, "trainer.sft.max_steps (--max-steps)"),
        ("model: {optim: {lr: fast}}", ConfigError, "must be a number"),
        ("model: {global_batch_size: 1.5}", ConfigError, "must be a whole number"),
        ("model: {global_batch_size: 0}", ConfigError, "must be at least 1"),
        ("model: {sft: {mask: all}}", ConfigError, "must be one of assistant, completion, none"),
        ("trainer: {precision: 16}", ConfigError, "must be one of bf16, fp32"),
        ("model: {optim: {betas: [0.9]}}", ConfigError, "must have 2 values"),
        ("trainer: {max_time: soon}", ConfigError, "D-HH:MM:SS"),
    ],
)
def test_a_wrong_file_is_answered_with_what_and_where(tmp_path, text, error, says):
    with pytest.raises(error) as refusal:
        merge(tmp_path, [text])
    assert says in str(refusal.value)
    assert "file0.yaml" in str(refusal.value)


def test_a_wrong_flag_value_is_answered_in_the_words_typed(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^--gbs 0 does not work: model.global_batch_size must be"
    ):
        merge(tmp_path, flags={"model.global_batch_size": "0"})


def test_a_wrong_environment_variable_is_named(tmp_path):
    with pytest.raises(ConfigError, match="environment NEMOALIGN_MODEL__OPTIM__LRR"):
        merge(tmp_path, environ={"NEMOALIGN_MODEL__OPTIM__LRR": "1"})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("model.optim.lrate", "model.optim.lr"),
        ("optim.lr", "model.optim.lr"),
        ("model.micro_batchsize", "model.micro_batch_size"),
        ("model.restore_from_pth", "model.restore_from_path"),
        ("model.num_layer", "model.num_layers"),
        ("trainer.max_step", "trainer.sft.max_steps"),
    ],
)
def test_the_nearest_key_is_named(tmp_path, typed, meant):
    with pytest.raises(ConfigError) as refusal:
        merge(tmp_path, sets=[f"{typed}=1"])
    assert f"there is no setting {typed}. Did you mean {meant}" in str(refusal.value)


def test_a_key_like_no_other_gets_no_guess(tmp_path):
    with pytest.raises(ConfigError, match="--print-config shows every setting"):
        merge(tmp_path, sets=["zzzz.qqqq=1"])


def test_taking_back_a_key_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"~model\.optim\.lrr.*model\.optim\.lr"):
        merge(tmp_path, sets=["~model.optim.lrr"])
