"""Rules between settings."""

import pytest

from nemoalign.config.check import check_complete
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError
from tests.config.merging import CHECKPOINT, CKPT, merge


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


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({}, "--ckpt model.nemo --data train.jsonl"),
        (CKPT, "nemoalign sft --data train.jsonl"),
        ({"model.data.train_ds.file_path": ["a"]}, "nemoalign sft --ckpt model.nemo"),
    ],
)
def test_what_is_missing_is_named_with_the_line_to_type(tmp_path, flags, says):
    merged = merge(tmp_path, flags=flags)
    with pytest.raises(ConfigError) as refusal:
        check_complete(merged.config, "sft")
    assert str(refusal.value).endswith(says)


def test_the_line_to_type_repeats_what_was_typed(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        check_complete(merge(tmp_path, flags=CKPT).config, "kto", ["--ckpt", "my model.nemo"])
    assert str(refusal.value).endswith(
        "Type: nemoalign kto --ckpt 'my model.nemo' --data train.jsonl"
    )


@pytest.mark.parametrize("split", ["validation_ds", "test_ds"])
def test_a_run_of_no_steps_needs_no_training_rows(tmp_path, split):
    flags = {
        **CKPT,
        "trainer.sft.max_steps": "0",
        f"model.data.{split}.file_path": ["v.jsonl"],
    }
    check_complete(merge(tmp_path, flags=flags).config, "sft")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"model.optim.lr": "1e-5", "model.optim.sched.min_lr": "1e-4"},
            "--min-lr 0.0001 is above --lr 1e-05 (flag --min-lr, flag --lr). Use --min-lr 1e-06",
        ),
        ({"model.peft.lora_tuning.alpha": "8"}, "--lora-alpha has no effect without --lora"),
        (
            {"model.peft.lora_tuning.target_modules": ["all"]},
            "--lora-targets has no effect without --lora",
        ),
        ({"model.peft.restore_from_path": "a.nemo"}, "add --lora"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path, flags, says):
    with pytest.raises(ConfigError) as refusal:
        merge(tmp_path, flags=flags)
    assert says in str(refusal.value)


def test_sequence_parallel_alone_is_said_to_do_nothing(tmp_path):
    alone = merge(tmp_path, flags={"model.sequence_parallel": True})
    assert alone.warnings == ["--sequence-parallel has no effect with --tp 1."]
    flags = {"model.sequence_parallel": True, "model.tensor_model_parallel_size": "2"}
    assert merge(tmp_path, flags=flags).warnings == []


@pytest.mark.parametrize(
    ("sched", "says"),
    [
        ({"warmup_steps": "5", "warmup_ratio": "0.1"}, "warmup_steps is 5 and warmup_ratio is 0.1"),
        ({"constant_steps": "5", "name": "linear"}, "belongs to CosineAnnealing"),
        ({"name": "NoamAnnealing"}, "must be one of cosine, linear, constant, WarmupAnnealing"),
    ],
)
def test_schedules_that_contradict_themselves_or_are_not_offered(tmp_path, sched, says):
    sets = [f"model.optim.sched.{name}={value}" for name, value in sched.items()]
    with pytest.raises(ConfigError, match=says):
        merge(tmp_path, sets=sets)


def test_a_kl_of_micro_batches_and_packs_are_said_not_to_fit() -> None:
    sets = ["model.kto.kl_estimate=micro_batch"]
    (warning,) = merge_run("kto", Said(sets=sets, environ={})).warnings
    assert "Add --no-packing" in warning
    assert merge_run("kto", Said(environ={}, preset="nemo-aligner")).warnings == []
