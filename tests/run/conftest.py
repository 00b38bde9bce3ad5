"""A tiny model, rows, and two finished runs of it."""

from pathlib import Path

import pytest

from tests.commands import tiny
from tests.run import roleplay

SHORT = ["--precision", "fp32", "--gbs", 8, "--mbs", 4, "--max-steps", 2, "--lr", "1e-3"]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A tiny model, rows, and two finished runs: full weights and LoRA on another layout."""
    root = tmp_path_factory.mktemp("runs")
    tiny.make_llama(root / "hf")
    tiny.quickly("convert", root / "hf", "-o", root / "m.nemo")
    tiny.write_rows(root / "train.jsonl", tiny.rows(32, seed=1))
    tiny.write_rows(root / "val.jsonl", tiny.rows(6, seed=2))
    data = ["--data", root / "train.jsonl", "--val", root / "val.jsonl"]
    template = ["--set", "model.data.train_ds.prompt_template=Q: {input}\\nA: {output}"]
    tiny.quickly("sft", "--ckpt", root / "m.nemo", *data, "-o", root / "full", *SHORT, *template)
    every_form = ["model.peft.save_peft=true", "model.peft.save_merged=true"]
    # The one run here whose ranks the command starts itself.
    tiny.ok(
        "sft", "--ckpt", root / "m.nemo", *data, "-o", root / "lora", *SHORT, "--lora", 4, "--tp", 2,
        *every_form,
    )  # fmt: skip
    return root


@pytest.fixture(scope="session")
def judged(tmp_path_factory) -> Path:
    """A tiny policy, reward models of it, prompts and a reward function."""
    return roleplay.make(tmp_path_factory.mktemp("judged"))
