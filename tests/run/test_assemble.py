"""Models put together for training from every kind of checkpoint, through the real command."""

import json

import pytest

from tests.commands import tiny
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
