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
    found = merged(name, algorithm)
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
