"""Precedence, sources, null, interpolation and the round trip through the written config."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError, SourceError
from tests.config.merging import CHECKPOINT, merge

LR = "model.optim.lr"
LAYERS = ("file0", "file1", "environment", "set", "flag")


def source_of(tmp_path, layer: str) -> str:
    return {
        "file0": str(tmp_path / "file0.yaml"),
        "file1": str(tmp_path / "file1.yaml"),
        "environment": "environment NEMOALIGN_MODEL__OPTIM__WEIGHT_DECAY",
        "set": "--set",
        "flag": "flag --weight-decay",
    }[layer]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.sets(st.sampled_from(LAYERS)))
def test_the_last_layer_that_names_a_key_wins_and_other_keys_keep_their_default(tmp_path, named):
    value = {layer: (index + 1) / 100 for index, layer in enumerate(LAYERS)}
    if {"set", "flag"} <= named:  # these two must agree
        value["set"] = value["flag"]
    key = "model.optim.weight_decay"
    merged = merge(
        tmp_path,
        [
            f"model: {{optim: {{weight_decay: {value[name]}}}}}" if name in named else "model: {}"
            for name in ("file0", "file1")
        ],
        environ=(
            {"NEMOALIGN_MODEL__OPTIM__WEIGHT_DECAY": str(value["environment"])}
            if "environment" in named
            else {}
        ),
        sets=[f"{key}={value['set']}"] if "set" in named else [],
        flags={key: str(value["flag"])} if "flag" in named else {},
    )
    last = max(named, key=LAYERS.index, default=None)
    assert merged.config.model.optim.weight_decay == (0.01 if last is None else value[last])
    assert merged.sources[key] == ("default" if last is None else source_of(tmp_path, last))
    untouched = {k: v for k, v in merged.sources.items() if k != key}
    assert all(source.startswith("default") for source in untouched.values())


def test_interpolations_see_the_final_values_and_know_four_resolvers(tmp_path):
    text = """
    trainer: {sft: {val_check_interval: 5, save_interval: "${.val_check_interval}"}}
    model:
      global_batch_size: ${multiply:${.micro_batch_size},4}
      micro_batch_size: ${sum:1,1}
      tensor_model_parallel_size: ${subtract:3,1}
      seed: ${int_div:${model.encoder_seq_length},2}
    """
    merged = merge(tmp_path, [text], flags={"trainer.sft.val_check_interval": "9"})
    assert merged.config.model.global_batch_size == 8
    assert merged.config.model.tensor_model_parallel_size == 2
    assert merged.config.model.seed == 256
    assert merged.config.trainer.loop.save_interval.steps(1) == 9


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${oc.env:HOME}", "nothing else"),
        ("${oc.decode:'1'}", "nothing else"),
        ("${model.${name}}", "nothing else"),
        ("${model.nowhere}", "there is no model.nowhere"),
        ("${sum:1,x}", "cannot be worked out"),
        ("${.seed}", "cannot be worked out"),
    ],
)
def test_other_interpolations_are_refused_in_one_sentence(tmp_path, value, says):
    with pytest.raises(ConfigError) as refusal:
        merge(tmp_path, [f'model: {{seed: "{value}"}}'])
    assert says in str(refusal.value)
    assert "model.seed" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unfinished_interpolation_is_named_and_can_be_escaped(tmp_path):
    key = "model.data.train_ds.prompt_template"
    with pytest.raises(ConfigError, match=r"no complete \$\{"):
        merge(tmp_path, sets=[f"{key}=costs ${{ {{a}}"])
    merged = merge(tmp_path, sets=[f"{key}=costs \\${{ {{a}}"])
    assert merged.config.model.data.train_ds.prompt_template == "costs ${ {a}"


def test_text_from_a_checkpoint_is_never_evaluated(tmp_path):
    hostile = {**CHECKPOINT, "data": {"train_ds": {"prompt_template": "${oc.env:HOME} {a}"}}}
    merged = merge(tmp_path, checkpoint=hostile)
    assert merged.config.model.data.train_ds.prompt_template == "${oc.env:HOME} {a}"
    again = tmp_path / "again.yaml"
    again.write_text(merged.to_yaml())
    repeated = merge_run("sft", Said(configs=[again], environ={}))
    assert repeated.config.model.data.train_ds.prompt_template == "${oc.env:HOME} {a}"


def test_a_flag_and_a_set_that_disagree_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--set gives model.optim.lr the value 0.2.*flag --lr"):
        merge(tmp_path, flags={LR: "0.1"}, sets=[f"{LR}=0.2"])
    assert merge(tmp_path, flags={LR: "1e-1"}, sets=[f"{LR}=0.1"]).config.model.optim.lr == 0.1
    with pytest.raises(ConfigError, match="peft_scheme"):
        merge(
            tmp_path,
            flags={"model.peft.lora_tuning.adapter_dim": "8"},
            sets=["model.peft.peft_scheme=none"],
        )


def test_nemoalign_yaml_in_the_working_directory_comes_first_and_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nemoalign.yaml").write_text("model: {seed: 5, optim: {lr: 0.5}}")
    merged = merge(tmp_path, ["model: {seed: 6}"])
    assert (merged.config.model.seed, merged.config.model.optim.lr) == (6, 0.5)
    assert merged.sources[LR] == "nemoalign.yaml"
    assert "nemoalign.yaml" in merged.notes[0]


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"no file nowhere\.yaml"):
        merge_run("sft", Said(configs=[Path("nowhere.yaml")], environ={}))
