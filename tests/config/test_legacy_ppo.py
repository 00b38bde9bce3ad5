"""NeMo-Aligner's names for settings of ppo: all of them mean a setting, and none is one of ours."""

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.layers import Said
from nemoalign.config.legacy import is_nemo_key, is_quiet
from nemoalign.config.legacy_ppo import ALIASES, QUIET, UNHONOURED
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError

SETTINGS = ALGORITHMS["ppo"].entries()


def merged(*sets):
    return merge_run("ppo", Said(sets=sets, environ={}))


def test_every_alias_is_a_setting_and_no_setting_is_listed_as_ignored():
    assert set(ALIASES.values()) <= set(SETTINGS)
    assert set(SETTINGS).isdisjoint([*ALIASES, *QUIET, *UNHONOURED])
    own = [key for key in SETTINGS if ".ppo." in key]
    assert [key for key in own if is_nemo_key(key, "ppo")] == []


@pytest.mark.parametrize("program", ["ppo", "reinforce"])
@pytest.mark.parametrize(
    ("theirs", "written", "ours", "value"),
    [
        ("trainer.{}.initial_policy_kl_penalty", "0.5", "initial_policy_kl_penalty", 0.5),
        ("trainer.{}.use_absolute_kl", "true", "kl_estimator", "abs"),
        ("trainer.{}.use_absolute_kl", "False", "kl_estimator", "k1"),
        ("trainer.{}.discount_factor", "0.9", "discount_factor", 0.9),
        ("trainer.{}.gae_lambda", "0.8", "gae_lambda", 0.8),
        ("trainer.{}.normalize_advantages", "false", "normalize_advantages", False),
        ("trainer.{}.num_rollouts_per_prompt", "2", "group", 2),
        ("model.{}.sampling_params.temperature", "0.7", "temperature", 0.7),
        ("model.{}.sampling_params.top_k", "50", "top_k", 50),
        ("model.{}.sampling_params.top_p", "0.9", "top_p", 0.9),
        ("model.{}.sampling_params.end_strings", "[a, '</s>']", "stop", ("a", "</s>")),
        ("model.{}.length_params.max_length", "100", "max_new_tokens", 100),
        ("model.{}.length_params.min_length", "3", "min_new_tokens", 3),
        ("model.{}.num_val_samples", "7", "num_val_samples", 7),
    ],
)
def test_names_of_nemo_aligner(program, theirs, written, ours, value):
    own = merged(f"{theirs.format(program)}={written}").config.model.algorithm
    assert getattr(own, ours) == value


def test_the_critics_warm_up_and_value_clip_have_their_old_places():
    own = merged("trainer.ppo.critic_warmup_steps=2", "model.loss_clip_val=0").config
    assert own.model.algorithm.critic_warmup_steps == 2
    assert own.model.algorithm.loss_clip_val == 0


def test_the_metric_that_ranks_checkpoints_has_its_name_here():
    for name in ("val_rewards", "val_global_rewards"):
        found = merged(f"exp_manager.checkpoint_callback_params.monitor={name}")
        assert found.config.exp_manager.checkpoint_callback_params.monitor == "val_reward"


def test_a_key_may_be_taken_back_under_either_name(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {ppo: {sampling_params: {end_strings: [x]}}}")
    for key in ("model.ppo.sampling_params.end_strings", "model.ppo.stop"):
        said = Said(configs=[path], sets=[f"~{key}"], environ={})
        assert merge_run("ppo", said).config.model.algorithm.stop == ()
    with pytest.raises(ConfigError, match=r"no setting model\.ppo\.sampling_params\.end_string\."):
        merged("~model.ppo.sampling_params.end_string")


def test_they_are_keys_of_ppo_alone():
    assert is_quiet("remote_critic_rm.critic.ip", "ppo")
    assert not is_nemo_key("remote_critic_rm.critic.ip", "sft")
    with pytest.raises(ConfigError, match=r"no setting trainer\.reinforce\.max_steps"):
        merge_run("dpo", Said(sets=["trainer.reinforce.max_steps=3"], environ={}))
