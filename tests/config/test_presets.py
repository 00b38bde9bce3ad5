"""A preset lies between our defaults and everything else, and every key of it is a setting."""

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.merge import merge_run
from nemoalign.config.presets import NOTES, PRESETS


def merged(preset, **options):
    return merge_run("sft", environ={}, preset=preset, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_is_taken_and_says_where_it_came_from(name):
    found = merged(name)
    entries = ALGORITHMS["sft"].entries()
    assert found.notes == [f"--preset {name}: {NOTES[name]}"]
    for key, value in PRESETS[name]["sft"].items():
        assert found.sources[key] in (f"--preset {name}", "default (--seq-len is shorter)")
        assert entries[key].read(value) == value
    assert found.config.model.optim.betas == PRESETS[name]["sft"]["model.optim.betas"]


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
