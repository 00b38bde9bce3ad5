"""Defaults that follow from other settings."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError
from tests.config.merging import merge

LR = "model.optim.lr"


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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.floats(1e-7, 1.0), st.booleans())
def test_a_given_rate_is_never_changed_and_ends_at_a_tenth(tmp_path, lr, lora):
    flags = {LR: repr(lr), **({"model.peft.lora_tuning.adapter_dim": "4"} if lora else {})}
    optim = merge(tmp_path, flags=flags).config.model.optim
    assert optim.lr == lr
    assert abs(optim.sched.min_lr - lr / 10) < 1e-12


def test_rows_are_never_longer_than_the_sequence(tmp_path):
    file = "model: {data: {train_ds: {max_seq_length: 400}}}"
    longer = merge(tmp_path, [file], flags={"model.encoder_seq_length": "500"})
    assert longer.config.model.data.train_ds.max_seq_length == 400
    shorter = merge(tmp_path, [file], flags={"model.encoder_seq_length": "300"})
    assert shorter.config.model.data.train_ds.max_seq_length == 300
    assert shorter.sources["model.data.train_ds.max_seq_length"] == "default (--seq-len is shorter)"


def test_nemos_other_schedules_end_at_nothing(tmp_path):
    def lowest(name):
        flags = {"model.optim.sched.name": name}
        return merge(tmp_path, flags=flags).config.model.optim.sched.min_lr

    assert lowest("WarmupAnnealing") == 0.0
    assert lowest("linear") > 0


@pytest.mark.parametrize(
    ("sets", "longest"),
    [
        ([], 256),
        (["model.ppo.max_new_tokens=100"], 412),
        (["model.data.train_ds.max_seq_length=500"], 256),
        (["model.data.train_ds.max_seq_length=200"], 200),
        (["model.data.seq_length=${model.encoder_seq_length}"], 256),
    ],
)
def test_prompts_leave_room_for_their_answers(sets, longest):
    found = merge_run("ppo", Said(sets=sets, environ={}))
    assert found.config.model.data.train_ds.max_seq_length == longest


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (Said(flags={"model.ppo.max_new_tokens": "600"}, environ={}), "600 leaves 0 of"),
        (Said(sets=["model.ppo.max_new_tokens=511"], environ={}), r"511 \(--set\) leaves 1 of"),
    ],
)
def test_answers_that_leave_prompts_no_room_are_refused(said, says):
    with pytest.raises(ConfigError, match=f"--max-new-tokens {says} --seq-len 512"):
        merge_run("ppo", said)
