import pytest

from nemoalign.config.peft import LoraTuning, Peft
from nemoalign.errors import ConfigError
from nemoalign.model.lora_settings import LoraSettings, lora_settings
from nemoalign.parallel.layout import ParallelLayout
from tests.config.merging import merge


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


def test_layers_are_counted_from_one_and_must_be_there():
    assert LoraSettings().layers(3) == (1, 2, 3)
    assert LoraSettings(layer_selection=(3, 1, 3)).layers(3) == (1, 3)
    for wrong in ((4,), (0, 1), ()):
        with pytest.raises(ConfigError, match="this model has layers 1 to 3"):
            LoraSettings(layer_selection=wrong).layers(3)


def test_every_pipeline_stage_needs_something_to_train():
    lora = LoraSettings(layer_selection=(1, 4))
    lora.check_stages(ParallelLayout(2, pp=2), 4)
    with pytest.raises(ConfigError, match="no adapter on the pipeline stage of layers 3 to 3"):
        lora.check_stages(ParallelLayout(2, pp=2, vp=2), 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("weight_tying", "true"), ("variant", "canonical"), ("column_init_method", "x")],
)
def test_what_is_not_offered_is_refused_by_name(tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf"model\.peft\.lora_tuning\.{key}"):
        merge(tmp_path, sets=[f"model.peft.lora_tuning.{key}={value}"])


def test_nemos_own_section_is_taken_word_for_word(tmp_path):
    section = """
model:
  peft:
    peft_scheme: lora
    lora_tuning:
      target_modules: [attention_qkv, mlp_fc1]
      adapter_dim: 16
      alpha: 8
      adapter_dropout: 0.1
      dropout_position: pre
      column_init_method: kaiming
      row_init_method: normal
      layer_selection: [1, 12]
      weight_tying: False
      position_embedding_strategy: null
      variant: nemo
"""
    merged = merge(tmp_path, [section])
    assert merged.warnings == []
    assert lora_settings(merged.config.model.peft) == LoraSettings(
        adapter_dim=16,
        alpha=8.0,
        adapter_dropout=0.1,
        dropout_position="pre",
        target_modules=("attention_qkv", "mlp_fc1"),
        column_init_method="kaiming",
        row_init_method="normal",
        layer_selection=(1, 12),
    )
