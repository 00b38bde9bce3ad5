"""Precedence, sources, null, interpolation and the round trip through the written config."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemoalign.config.merge import merge_run
from nemoalign.config.merged import flattened
from nemoalign.errors import ConfigError, ContentError, SourceError

CHECKPOINT = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "encoder_seq_length": 256,
    "position_embedding_type": "rope",
    "optim": {"lr": 9.0, "sched": {"min_lr": 8.0}},
    "global_batch_size": 7,
    "micro_batch_size": 7,
    "precision": 32,
    "hidden_dropout": 0.5,
    "tensor_model_parallel_size": 8,
    "tokenizer": {"library": "huggingface", "type": None, "model": "nemo:abc_tokenizer.json"},
    "data": {"train_ds": {"file_path": "old.jsonl", "prompt_template": "Q {q} A {a}"}},
    "something_unread": {"kept": [1, 2]},
}
CKPT = {"pretrained_checkpoint.restore_from_path": "m.nemo"}


def merge(tmp_path, files=(), *, checkpoint=None, flags=None, sets=(), environ=None):
    """Merge with ``files`` written as --config files; ``checkpoint`` is a model_config or None."""
    paths = []
    for number, text in enumerate(files):
        path = tmp_path / f"file{number}.yaml"
        path.write_text(text)
        paths.append(path)
    known = dict(flags or {})
    if checkpoint is not None:
        known = {**CKPT, **known}
    return merge_run(
        "sft",
        flags=known,
        sets=sets,
        configs=paths,
        environ=environ or {},
        checkpoint=lambda path: checkpoint or {},
    )


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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
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


def test_the_checkpoint_brings_architecture_tokenizer_and_template_but_no_training_settings(tmp_path):
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


def test_seq_len_may_exceed_a_rotary_checkpoint_with_a_warning(tmp_path):
    longer = {"model.encoder_seq_length": "512"}
    merged = merge(tmp_path, checkpoint=CHECKPOINT, flags=longer)
    assert merged.config.model.encoder_seq_length == 512
    assert merged.config.model.data.train_ds.max_seq_length == 512
    assert merged.checkpoint_config["encoder_seq_length"] == 512
    assert any("256" in warning and "512" in warning for warning in merged.warnings)
    factor = merge(
        tmp_path,
        checkpoint=CHECKPOINT,
        flags=longer,
        sets=["model.seq_len_interpolation_factor=2"],
    )
    assert factor.warnings == []
    assert factor.checkpoint_config["seq_len_interpolation_factor"] == 2


def test_seq_len_may_not_exceed_learned_positions(tmp_path):
    learned = {**CHECKPOINT, "position_embedding_type": "learned_absolute"}
    with pytest.raises(ConfigError, match="--seq-len 512 is longer than the 256 positions"):
        merge(tmp_path, checkpoint=learned, flags={"model.encoder_seq_length": 512})
    shorter = merge(tmp_path, checkpoint=learned, flags={"model.encoder_seq_length": 100})
    assert shorter.config.model.encoder_seq_length == 100
    assert shorter.checkpoint_config["encoder_seq_length"] == 256


def test_defaults_that_follow_from_others(tmp_path):
    flags = {"model.peft.lora_tuning.adapter_dim": "8", "trainer.sft.val_check_interval": "7"}
    merged = merge(tmp_path, flags=flags)
    model = merged.config.model
    assert model.peft.peft_scheme == "lora"
    assert (model.peft.lora_tuning.adapter_dim, model.peft.lora_tuning.alpha) == (8, 8.0)
    assert (model.optim.lr, model.optim.sched.min_lr) == (1e-4, 1e-5)
    assert merged.config.trainer.loop.save_interval.steps(1000) == 7
    assert merged.sources["trainer.sft.save_interval"] == "default (as --val-every)"
    given_lr = merge(tmp_path, flags={**flags, LR: "3e-4"})
    assert given_lr.config.model.optim.lr == 3e-4
    assert given_lr.config.model.optim.sched.min_lr == 3e-5


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
    repeated = merge_run("sft", configs=[again], environ={})
    assert repeated.config.model.data.train_ds.prompt_template == "${oc.env:HOME} {a}"


def test_the_written_config_alone_repeats_the_run(tmp_path):
    flags = {
        "model.data.train_ds.file_path": ["a.jsonl:0.5", "b.jsonl"],
        "model.peft.lora_tuning.adapter_dim": "16",
        "trainer.sft.val_check_interval": "0.5",
        "trainer.max_time": "1-00:30:00",
        "exp_manager.explicit_log_dir": "run",
        "exp_manager.overwrite": True,
    }
    merged = merge(
        tmp_path,
        checkpoint=CHECKPOINT,
        flags=flags,
        sets=["model.data.train_ds.prompt_template={q}\\n{a}"],
    )
    text = merged.to_yaml()
    again = merge(tmp_path, [text], checkpoint=CHECKPOINT, flags={})
    assert again.config.exp_manager.overwrite is False
    assert again.to_yaml() == text
    assert again.tree["model"] == merged.tree["model"]
    assert again.warnings == merged.warnings == []


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


def test_a_tilde_takes_a_key_back_to_its_default(tmp_path):
    text = "model: {optim: {lr: 0.5, sched: {min_lr: 0.1, warmup_steps: 3}}}"
    merged = merge(tmp_path, [text], sets=["~model.optim.sched"])
    assert merged.config.model.optim.sched.warmup_steps is None
    assert merged.config.model.optim.sched.min_lr == 0.05


def test_nemoalign_yaml_in_the_working_directory_comes_first_and_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nemoalign.yaml").write_text("model: {seed: 5, optim: {lr: 0.5}}")
    merged = merge(tmp_path, ["model: {seed: 6}"])
    assert (merged.config.model.seed, merged.config.model.optim.lr) == (6, 0.5)
    assert merged.sources[LR] == "nemoalign.yaml"
    assert "nemoalign.yaml" in merged.notes[0]


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


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"no file nowhere\.yaml"):
        merge_run("sft", configs=[Path("nowhere.yaml")], environ={})


def test_a_wrong_flag_value_is_answered_in_the_words_typed(tmp_path):
    with pytest.raises(ConfigError, match=r"^--gbs 0 does not work: model.global_batch_size must be"):
        merge(tmp_path, flags={"model.global_batch_size": "0"})


def test_a_wrong_environment_variable_is_named(tmp_path):
    with pytest.raises(ConfigError, match="environment NEMOALIGN_MODEL__OPTIM__LRR"):
        merge(tmp_path, environ={"NEMOALIGN_MODEL__OPTIM__LRR": "1"})
