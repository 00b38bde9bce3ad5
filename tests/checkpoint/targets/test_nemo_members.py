"""Settings of what is written: the source's own, and only what the layout decides is new."""

from __future__ import annotations

from dataclasses import replace

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.targets.cut import Cut
from nemoalign.checkpoint.targets.nemo_members import settings_for
from nemoalign.checkpoint.targets.writing import WriteOptions
from tests.checkpoint.models import FIXTURES

OPTIONS = WriteOptions()


def test_unknown_settings_are_kept_as_they_are_stored():
    source = open_source(FIXTURES / "gpt_tp2pp2_ranks.nemo")
    odd = replace(source, stored_config=source.stored_config | {"mine": "${optim.lr}"})
    config = settings_for(odd, OPTIONS)
    changed = {key for key in config if config[key] != odd.stored_config.get(key)}
    assert changed == {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "nemoalign",
    }
    assert config["mine"] == "${optim.lr}"


def test_a_fixed_number_of_rows_follows_the_ranks():
    """NeMo refuses an override_vocab_size that its ranks cannot share."""
    source = open_source(FIXTURES / "gpt_tp2pp2_ranks.nemo")
    fixed = replace(source, arch=replace(source.arch, override_vocab_size=519))
    assert settings_for(fixed, OPTIONS)["override_vocab_size"] == 519
    assert settings_for(fixed, OPTIONS, Cut(tp=2))["override_vocab_size"] == 768
    assert "override_vocab_size" not in settings_for(source, OPTIONS, Cut(tp=2))


def test_an_adapter_alone_has_settings_too():
    source = open_source(FIXTURES / "lora_tp1.nemo")
    weights = source.adapter.weights if source.adapter else source.weights
    config = settings_for(replace(source, weights=weights), OPTIONS, Cut(tp=2))
    assert config["tensor_model_parallel_size"] == 2
    assert config["peft"] == source.stored_config["peft"]
