"""What ``ppo`` makes of its settings: sizes, defaults that follow, what contradicts itself."""

from pathlib import Path

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.check import check_complete
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.config.ppo import PpoSettings
from nemoalign.config.values import RewardSource
from nemoalign.errors import ConfigError
from tests.config.merging import CHECKPOINT, CKPT

OWN = "model.ppo."
REWARD = {f"{OWN}reward": ["rules:score"]}
DATA = {"model.data.train_ds.file_path": ["prompts.jsonl"]}


def merged(sets=(), **flags):
    typed = {name if "." in name else f"{OWN}{name}": value for name, value in flags.items()}
    given = {**CKPT, **REWARD, **DATA, **typed}
    return merge_run("ppo", Said(flags=given, sets=sets, environ={}), lambda _: CHECKPOINT)


@pytest.mark.parametrize(
    ("kind", "answers", "critic", "place", "estimate", "whitens"),
    [
        ("gae", 1, True, "reward", "abs", True),
        ("reinforce", 1, False, "reward", "abs", True),
        ("rloo", 4, False, "reward", "abs", False),
        ("grpo", 8, False, "loss", "k3", False),
    ],
)
def test_a_kind_of_advantage_brings_its_own_defaults(
    kind, answers, critic, place, estimate, whitens
) -> None:
    own = PpoSettings(advantage=kind)
    assert (own.answers, own.prompts) == (answers, 512 // answers)
    assert (own.has_critic, own.whitens) == (critic, whitens)
    assert (own.kl_place, own.kl_kind) == (place, estimate)


def test_what_is_said_wins() -> None:
    own = PpoSettings(
        advantage="grpo", group=4, kl_in="reward", normalize_advantages=True, num_rollout_samples=64
    )
    assert (own.answers, own.prompts) == (4, 16)
    assert (own.kl_place, own.kl_kind, own.whitens) == ("reward", "abs", True)
    assert PpoSettings(kl_in="loss").kl_kind == "k3"
    assert PpoSettings(kl_in="loss", kl_estimator="k1").kl_kind == "k1"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_rollout_samples": 30, "advantage": "rloo"}, "--rollouts 30 is no multiple of --group 4. Use --rollouts 32."),
        ({"advantage": "grpo", "group": 1}, "compares the answers to a prompt, and --group is 1. Use --group 8."),
        ({"advantage": "rloo", "critic_path": Path("rm")}, "--critic has no effect: --advantage rloo"),
        ({"advantage": "grpo", "share_trunk": True}, "--share-trunk has no effect"),
        ({"advantage": "reinforce", "critic_warmup_steps": 2}, "--critic-warmup has no effect"),
        ({"share_trunk": True, "critic_path": Path("rm")}, "Leave --critic and --critic-warmup out"),
        ({"share_trunk": True, "critic_warmup_steps": 1}, "Leave --critic and --critic-warmup out"),
        ({"discount_factor": 1.5}, "at most 1"),
        ({"ratio_clip_c": 0.5}, "above 1"),
    ],
)  # fmt: skip
def test_settings_that_contradict_are_refused_with_what_to_type(settings, says) -> None:
    with pytest.raises(ConfigError) as refusal:
        PpoSettings(**settings)
    assert says in str(refusal.value)


def test_lengths_and_sizes_follow_from_each_other() -> None:
    config = merged().config
    own = config.model.algorithm
    assert (config.model.encoder_seq_length, own.max_new_tokens) == (256, 128)
    assert config.model.data.train_ds.max_seq_length == 128
    assert config.model.global_batch_size <= own.num_rollout_samples
    small = merged(num_rollout_samples=8, max_new_tokens=100).config
    assert small.model.global_batch_size == 8
    assert small.model.data.train_ds.max_seq_length == 156
    said = merged(num_rollout_samples=8, **{"model.global_batch_size": 4}).config
    assert said.model.global_batch_size == 4


@pytest.mark.parametrize("lora", [False, True])
def test_rates_are_those_of_policies_and_critics(lora) -> None:
    flags = {"model.peft.lora_tuning.adapter_dim": 4} if lora else {}
    model = merged(**flags).config.model
    factor = 10 if lora else 1
    assert model.optim.lr == pytest.approx(9e-7 * factor)
    assert model.algorithm.critic_lr == pytest.approx(9e-6 * factor)
    assert merged(critic_lr=1e-4, **flags).config.model.algorithm.critic_lr == 1e-4
    assert model.optim.sched.name == "constant"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"num_rollout_samples": 48, "model.global_batch_size": 32}, "--rollouts 48 is no multiple of --gbs 32, the answers of one update. Use --rollouts 64, or --gbs 16."),
        ({"max_new_tokens": 250}, "--max-new-tokens 250 leaves 6 of --seq-len 256 for prompts. Use 128 or fewer."),
        ({"max_new_tokens": 300}, "leaves 0 of --seq-len 256"),
        ({"max_new_tokens": 9, "min_new_tokens": 10}, "--min-new-tokens 10 is above --max-new-tokens 9"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused_with_what_does(flags, says) -> None:
    with pytest.raises(ConfigError) as refusal:
        merged(**flags)
    assert says in str(refusal.value)


def test_what_answers_are_worth_is_asked_for() -> None:
    without = merge_run("ppo", Said(flags={**CKPT, **DATA}, environ={}), lambda _: CHECKPOINT)
    with pytest.raises(
        ConfigError, match=r"what answers are worth \(--reward\).*--reward rm\.nemo"
    ):
        check_complete(without.config, "ppo")
    check_complete(merged().config, "ppo")


def test_draws_from_another_distribution_are_a_warning() -> None:
    assert merged().warnings == []
    (warning,) = merged(temperature=0.7, top_k=50).warnings
    assert warning.startswith(
        "--temperature 0.7 --top-k 50 draws answers from another distribution"
    )
    (warning,) = merged(top_p=0.9).warnings
    assert "--top-p 0.9" in warning


def test_its_flags_reach_its_settings() -> None:
    flags = {entry.setting.flag: entry.key for entry in ALGORITHMS["ppo"].flags()}
    wanted = {
        "--advantage": "advantage",
        "--kl": "initial_policy_kl_penalty",
        "--clip": "ratio_eps",
        "--gamma": "discount_factor",
        "--critic": "critic_path",
        "--rollouts": "num_rollout_samples",
        "--reward": "reward",
    }
    assert {flag: flags[flag] for flag in wanted} == {f: OWN + key for f, key in wanted.items()}
    own = merged(reward=["rules:score:0.5", "other:f"]).config.model.algorithm
    assert own.reward == (
        RewardSource(module="rules", function="score", weight=0.5),
        RewardSource(module="other", function="f"),
    )
