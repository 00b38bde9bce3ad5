"""A preset lies between our defaults and everything else, and every key of it is a setting."""

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.config.presets import NOTES, PRESETS
from nemoalign.config.values import Every
from nemoalign.errors import ConfigError


def merged(preset, algorithm="sft", checkpoint=None, **said):
    return merge_run(algorithm, Said(environ={}, preset=preset, **said), checkpoint)


TRAINING = [name for name, row in ALGORITHMS.items() if row.settings.trains]


@pytest.mark.parametrize("algorithm", TRAINING)
@pytest.mark.parametrize("name", PRESETS)
def test_every_value_is_taken_and_says_where_it_came_from(name, algorithm):
    # TRL's answers leave a sequence of 512 tokens no room for a prompt.
    found = merged(name, algorithm, flags={"model.encoder_seq_length": "600"})
    entries = ALGORITHMS[algorithm].entries()
    assert found.notes == [f"--preset {name}: {NOTES[name][algorithm]}"]
    for key, value in PRESETS[name][algorithm].items():
        assert found.sources[key] in (f"--preset {name}", "default (--seq-len is shorter)")
        assert entries[key].read(value) == value
    assert found.config.model.optim.betas == PRESETS[name][algorithm]["model.optim.betas"]


def test_a_command_that_trains_nothing_has_no_peers():
    with pytest.raises(ConfigError, match="nothing for generate"):
        merged("trl", "generate")


def test_peers_losses_of_pairs_and_labels():
    nemo, trl = (merged(name, "dpo", sets=["model.dpo.preference_loss=ipo"]) for name in PRESETS)
    assert [one.config.model.algorithm.losses[0][0] for one in (nemo, trl)] == ["ipo_sum", "ipo"]
    assert nemo.config.trainer.loop.val_check_interval == Every(0.1, epochs=True)
    nemo, trl = (merged(name, "kto").config.model.algorithm for name in PRESETS)
    assert (nemo.ref_policy_kl_penalty, nemo.kl_estimate, nemo.mismatched_answer) == (
        0.2,
        "micro_batch",
        "next",
    )
    assert (trl.ref_policy_kl_penalty, trl.kl_estimate, trl.mismatched_answer) == (
        0.1,
        "global_batch",
        "previous",
    )


def test_reinforcement_with_a_critic_as_nemo_aligner_has_it():
    found = merged("nemo-aligner", "ppo").config
    own, optim = found.model.algorithm, found.model.optim
    assert (own.advantage, own.prompts, own.answers, own.whitens) == ("gae", 512, 1, True)
    assert (own.initial_policy_kl_penalty, own.kl_place, own.kl_kind) == (0.01, "reward", "abs")
    assert (own.gae_lambda, own.unfinished, own.critic_lr) == (0.95, "mask", 9e-6)
    assert (optim.lr, optim.betas, optim.weight_decay) == (9e-7, (0.9, 0.98), 0.1)
    assert (optim.sched.name, optim.sched.warmup_steps) == ("CosineAnnealing", 10)
    assert (optim.sched.constant_steps, optim.sched.min_lr) == (1000, 9e-8)
    assert (found.model.global_batch_size, found.model.softmax_over_padding) == (64, True)
    assert own.max_new_tokens == 256


def test_reinforcement_by_groups_as_trl_has_it():
    found = merged("trl", "ppo", sets=["model.encoder_seq_length=1024"]).config
    own, optim = found.model.algorithm, found.model.optim
    assert (own.advantage, own.prompts, own.answers, own.whitens) == ("grpo", 1, 8, False)
    assert (own.initial_policy_kl_penalty, own.kl_place, own.has_critic) == (0.0, "loss", False)
    assert (own.scale_rewards, own.leave_one_out, own.loss_average) == ("group", False, "tokens")
    assert (own.ratio_eps, own.unfinished, own.max_new_tokens) == (0.2, "learn", 512)
    assert (optim.lr, optim.betas, optim.sched.name) == (1e-6, (0.9, 0.999), "linear")
    assert found.model.data.train_ds.max_seq_length == 512
    # An algorithm of one's own brings its own places for the KL.
    rloo = merged("trl", "ppo", sets=["model.encoder_seq_length=1024", "model.ppo.advantage=rloo"])
    assert rloo.config.model.algorithm.kl_place == "reward"


def test_answers_longer_than_the_sequence_are_laid_to_the_preset():
    with pytest.raises(ConfigError, match=r"--max-new-tokens 512 \(--preset trl\) leaves 0"):
        merged("trl", "ppo")


def test_a_person_and_a_checkpoint_win_over_it():
    checkpoint = {
        "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4,
        "encoder_seq_length": 2048,
    }  # fmt: skip
    found = merged(
        "trl",
        flags={"model.optim.lr": 1e-3, "pretrained_checkpoint.restore_from_path": "m.nemo"},
        sets=["model.seed=7"],
        checkpoint=lambda path: checkpoint,
    )
    model = found.config.model
    assert (model.optim.lr, model.seed, model.optim.weight_decay) == (1e-3, 7, 0.0)
    assert (model.encoder_seq_length, model.data.train_ds.max_seq_length) == (2048, 1024)
    assert model.optim.sched.min_lr == 0.0
