"""The schema keeps the documented defaults and NeMo's names."""

import dataclasses

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.schema import ModelConfig, OptimConfig, RunConfig

ENTRIES = ALGORITHMS["sft"].entries()


@pytest.mark.parametrize(
    ("flag", "key", "default"),
    [
        ("--mbs", "model.micro_batch_size", 1),
        ("--gbs", "model.global_batch_size", 64),
        ("--seed", "model.seed", 1234),
        ("--tp", "model.tensor_model_parallel_size", 1),
        ("--pp", "model.pipeline_model_parallel_size", 1),
        ("--vp", "model.virtual_pipeline_model_parallel_size", None),
        ("--cp", "model.context_parallel_size", 1),
        ("--ep", "model.expert_model_parallel_size", 1),
        ("--lr", "model.optim.lr", 1e-5),
        ("--weight-decay", "model.optim.weight_decay", 0.01),
        ("--schedule", "model.optim.sched.name", "CosineAnnealing"),
        ("--warmup", "model.optim.sched.warmup_steps", None),
        ("--recompute", "model.activations_checkpoint_granularity", None),
        ("--mask", "model.sft.mask", "assistant"),
    ],
)
def test_contract_flags_set_nemo_keys(flag, key, default):
    assert ENTRIES[key].setting.flag == flag
    assert ENTRIES[key].default == default


def test_everything_is_frozen_and_makes_itself():
    config = RunConfig()
    assert config.model.optim == OptimConfig()
    assert config.model.optim.betas == (0.9, 0.98)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = ModelConfig()
