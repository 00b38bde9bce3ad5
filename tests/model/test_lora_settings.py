import pytest

from nemoalign.config.peft import LoraTuning, Peft
from nemoalign.errors import ConfigError
from nemoalign.model.lora_settings import LoraSettings, lora_settings


def test_an_unknown_target_or_width_is_refused():
    with pytest.raises(ConfigError, match="'q_proj'; the targets are attention_qkv"):
        LoraSettings(target_modules=("q_proj",)).targets()
    with pytest.raises(ConfigError, match="--lora is 0"):
        LoraSettings(adapter_dim=0).targets()


def test_a_runs_settings_become_adapters_or_none():
    assert lora_settings(Peft()) is None
    tuning = LoraTuning(adapter_dim=4, alpha=8.0, target_modules=("mlp",))
    settings = lora_settings(Peft(peft_scheme="lora", lora_tuning=tuning))
    assert settings is not None
    assert settings.scale == 2.0
    assert settings.targets() == ("mlp_fc1", "mlp_fc2")
