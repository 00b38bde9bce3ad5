"""A run's models are built with its settings, and with those heads that it learns."""

from dataclasses import replace

import pytest

from nemoalign.checkpoint.open import open_source
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.model.lora_settings import lora_settings
from nemoalign.parallel.state import start
from nemoalign.run.built import built_model, trained_architecture
from tests.checkpoint.models import FIXTURES
from tests.config.merging import CHECKPOINT, CKPT
from tests.run.roleplay import prepared


@pytest.mark.parametrize(
    ("algorithm", "kept"), [("sft", 0.02), ("dpo", 0.0), ("rm", 0.0), ("ppo", 0.0)]
)
def test_routers_losses_are_for_a_loss_that_counts_tokens(algorithm, kept) -> None:
    arch = open_source(FIXTURES / "hf_mixtral").arch
    config = merge_run(algorithm, Said(flags=CKPT, environ={}), lambda _: CHECKPOINT).config
    built = trained_architecture(config, replace(arch, moe_aux_loss_coeff=0.02))
    assert built == replace(arch, moe_aux_loss_coeff=kept)


@pytest.mark.parametrize("shares", [False, True])
def test_dropout_adapters_and_heads_are_the_runs(shares, judged) -> None:
    flags = {
        "share_trunk": shares,
        "model.hidden_dropout": 0.25,
        "model.peft.lora_tuning.adapter_dim": 3,
    }
    merged, made = prepared(judged, **flags)
    config = merged.config
    with start(made.layout, seed=1):
        (chunk,) = built_model(config, made, lora_settings(config.model.peft))
        (plain,) = built_model(config, made, None)
    assert chunk.config.hidden_dropout == 0.25
    names, others = (dict(one.named_parameters()).keys() for one in (chunk, plain))
    assert others < names
    assert ("value_head.weight" in names) is shares
