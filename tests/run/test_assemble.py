"""Models put together for training from every kind of checkpoint, through the real command."""

import json
from dataclasses import replace

import pytest

from nemoalign.checkpoint.open import open_source
from nemoalign.config.merge import Said, merge_run
from nemoalign.run.assemble import trained_architecture
from tests.checkpoint.models import FIXTURES
from tests.commands import tiny
from tests.config.merging import CHECKPOINT, CKPT
from tests.run.conftest import SHORT


@pytest.mark.slow
def test_training_goes_on_from_an_archive_an_adapter_and_its_merged_model(made, tmp_path) -> None:
    adapter = made / "lora/megatron_gpt_sft.nemo"
    last = json.loads((made / "lora/summary.json").read_text())["val_loss"]
    data = ["--data", made / "train.jsonl", "--val", made / "val.jsonl"]
    for name, flags in {
        "merged": ["--ckpt", adapter],
        "adapter": ["--ckpt", made / "m.nemo", "--adapter", adapter, "--lora", 4],
    }.items():
        tiny.quickly("sft", *flags, *data, "-o", tmp_path / name, *SHORT)
        before, after = (entry["val_loss"] for entry in tiny.read_metrics(tmp_path / name, "val"))
        assert before == pytest.approx(last, abs=2e-6), name
        assert after < before, name


@pytest.mark.parametrize(("algorithm", "kept"), [("sft", 0.02), ("dpo", 0.0), ("rm", 0.0)])
def test_routers_losses_are_for_a_loss_that_counts_tokens(algorithm, kept) -> None:
    arch = open_source(FIXTURES / "hf_mixtral").arch
    config = merge_run(algorithm, Said(flags=CKPT, environ={}), lambda _: CHECKPOINT).config
    built = trained_architecture(config, replace(arch, moe_aux_loss_coeff=0.02))
    assert built == replace(arch, moe_aux_loss_coeff=kept)
