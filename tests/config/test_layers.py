"""How files, environment and --set become keys and values."""

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.layers import Given, environment_layer, sets_layer, stack, tree_layer
from nemoalign.errors import ConfigError
from tests.config.merging import merge

ENTRIES = ALGORITHMS["sft"].entries()


def values_of(layer):
    return {key: given.value for key, given in layer.values.items()}


def test_a_tilde_takes_a_key_back_to_its_default(tmp_path):
    text = "model: {optim: {lr: 0.5, sched: {min_lr: 0.1, warmup_steps: 3}}}"
    merged = merge(tmp_path, [text], sets=["~model.optim.sched"])
    assert merged.config.model.optim.sched.warmup_steps is None
    assert merged.config.model.optim.sched.min_lr == 0.05


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_hydra_spellings_of_an_override(sign):
    layer = sets_layer([f"{sign}model.optim.lr=1e-4"], ENTRIES, float)
    assert values_of(layer) == {"model.optim.lr": 1e-4}


@pytest.mark.parametrize("text", ["model.optim.lr", "", "=3", "a b=3"])
def test_an_override_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        sets_layer([text], ENTRIES, str)


@pytest.mark.parametrize(
    ("written", "template"),
    [
        ("{q} {a}", "{q} {a}"),
        ("'{q} {a}'", "{q} {a}"),
        ('"{q}: {a}"', "{q}: {a}"),
        ("Q: {q}\\nA: {a}", "Q: {q}\\nA: {a}"),
        ("{q}={a}", "{q}={a}"),
        ("null", None),
    ],
)
def test_text_is_taken_as_it_stands(tmp_path, written, template):
    key = "model.data.train_ds.prompt_template"
    merged = merge(tmp_path, sets=[f"{key}={written}"])
    assert merged.config.model.data.train_ds.prompt_template == template
    environ = {"NEMOALIGN_MODEL__DATA__TRAIN_DS__PROMPT_TEMPLATE": written}
    assert merge(tmp_path, environ=environ).tree == merged.tree


def test_a_typed_number_can_be_reckoned_with(tmp_path):
    text = "model: {global_batch_size: '${multiply:${model.micro_batch_size},3}'}"
    merged = merge(tmp_path, [text], flags={"model.micro_batch_size": "2"})
    assert merged.config.model.global_batch_size == 6


def test_lists_of_files_come_as_yaml_or_alone(tmp_path):
    key = "model.data.train_ds.file_path"
    for written, count in (("[a.jsonl,b.jsonl]", 2), ("a.jsonl:0.5", 1), ("a,b.jsonl", 1)):
        merged = merge(tmp_path, sets=[f"{key}={written}"])
        assert len(merged.config.model.data.train_ds.file_path) == count


def test_only_names_with_two_underscores_in_the_environment_are_settings():
    environ = {"NEMOALIGN_PARENT": "1", "OTHER__X": "2", "NEMOALIGN_MODEL__SEED": "3"}
    layer = environment_layer(environ, ENTRIES, int)
    assert values_of(layer) == {"model.seed": 3}
    assert layer.values["model.seed"].source == "environment NEMOALIGN_MODEL__SEED"


def test_a_mandatory_value_that_is_missing_is_nothing_given():
    layer = tree_layer({"model": {"restore_from_path": "???", "seed": 1}}, "x.yaml", ENTRIES)
    assert values_of(layer) == {"model.seed": 1}


def test_keys_move_to_our_name_and_interpolations_follow():
    tree = {
        "model": {
            "data": {
                "train_ds": {"micro_batch_size": 2, "global_batch_size": "${.micro_batch_size}"},
                "validation_ds": {"micro_batch_size": "${..train_ds.micro_batch_size}"},
            }
        }
    }
    assert values_of(tree_layer(tree, "x.yaml", ENTRIES)) == {
        "model.micro_batch_size": 2,
        "model.global_batch_size": "${model.micro_batch_size}",
        "model.data.validation_ds.micro_batch_size": "${model.micro_batch_size}",
    }


def test_one_file_may_not_say_two_things():
    tree = {"model": {"micro_batch_size": 1, "data": {"train_ds": {"micro_batch_size": 2}}}}
    with pytest.raises(ConfigError, match=r"x\.yaml sets model\.micro_batch_size twice"):
        tree_layer(tree, "x.yaml", ENTRIES)
    mirror = {
        "trainer": {"max_time": None},
        "exp_manager": {"max_time_per_run": "${trainer.max_time}"},
    }
    assert values_of(tree_layer(mirror, "x.yaml", ENTRIES)) == {"trainer.max_time": None}


def test_stacking_keeps_the_last_and_forgets_what_is_dropped():
    low = tree_layer({"a": {"b": 1, "c": 2}, "ab": 3}, "low", ENTRIES)
    high = sets_layer(["~a", "d=4"], ENTRIES, int)
    assert stack([low, high]) == {"ab": Given(3, "low"), "d": Given(4, "--set")}
