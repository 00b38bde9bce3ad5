"""LoRA settings: what ``--lora`` does, and its targets."""

import pytest

from nemoalign.config.peft import LORA_TARGETS
from nemoalign.errors import ConfigError
from tests.config.merging import merge

TUNING = "model.peft.lora_tuning."


def test_lora_takes_a_rank_and_switches_adapters_on(tmp_path):
    assert merge(tmp_path).config.model.peft.peft_scheme == "none"
    merged = merge(tmp_path, flags={f"{TUNING}adapter_dim": "16"})
    assert merged.config.model.peft.peft_scheme == "lora"
    assert merged.sources["model.peft.peft_scheme"] == "flag --lora"
    assert merged.config.model.peft.lora_tuning.target_modules == ("attention_qkv",)


@pytest.mark.parametrize("target", LORA_TARGETS)
def test_every_target_of_nemo_is_known(tmp_path, target):
    flags = {f"{TUNING}adapter_dim": "4", f"{TUNING}target_modules": [target]}
    assert merge(tmp_path, flags=flags).config.model.peft.lora_tuning.target_modules == (target,)


def test_another_target_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="must be one of attention_qkv, attention_dense"):
        merge(tmp_path, sets=[f"{TUNING}target_modules=[q_proj]"])
