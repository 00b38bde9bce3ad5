"""Reward models as a command: transformers' own training, any layout, and what the archive is."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.reward import described_head
from tests.commands import tiny

ROWS = json.loads((Path(__file__).parents[1] / "fixtures/trl/dpo.json").read_text())["rows"]
PLAIN = ["--precision", "fp32", "--schedule", "constant", "--warmup", 0, "--weight-decay", 0]
LAYOUTS = {
    "TP2 SP": ["--mbs", 2, "--tp", 2, "--sequence-parallel"],
    "PP2": ["--mbs", 2, "--pp", 2],
    "DP2": ["--mbs", 1, "--devices", 2],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rm")
    tiny.make_llama(root / "hf")
    config = LlamaConfig.from_pretrained(root / "hf", num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(root / "classifier")
    tiny.make_tokenizer().save_pretrained(root / "classifier")
    tiny.write_rows(root / "pairs.jsonl", ROWS)
    return root


def rm(
    made: Path, out: Path, *flags: object, steps: int = 3, ckpt: str = "hf", lr: float = 2e-4
) -> list[dict]:
    tiny.ok(
        "rm", "--ckpt", made / ckpt, "--data", made / "pairs.jsonl", "-o", out, "--gbs", 4,
        "--max-steps", steps, "--seq-len", 256, "--lr", lr, *PLAIN, *flags,
    )  # fmt: skip
    return tiny.read_metrics(out)


def ids(tokenizer, row: dict, side: str) -> torch.Tensor:
    return torch.tensor([[*tokenizer(row["prompt"] + row[side])["input_ids"], 2]])


@pytest.mark.slow
def test_steps_and_the_exported_classifier_are_transformers_own(made, tmp_path) -> None:
    found = rm(made, tmp_path / "run", "--mbs", 2, "-s", "model.optim.betas=[0.9,0.999]", "--center-rewards", 0.01, ckpt="classifier", lr=1e-3)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(made / "classifier")
    model = LlamaForSequenceClassification.from_pretrained(made / "classifier").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0)
    for step, ours in enumerate(found):
        rows = ROWS[4 * step : 4 * step + 4]
        chosen, rejected = (
            torch.cat([model(ids(tokenizer, row, side)).logits[:, 0] for row in rows])
            for side in ("chosen", "rejected")
        )
        loss = torch.nn.functional.softplus(rejected - chosen) + 0.01 * (chosen + rejected) ** 2
        optimizer.zero_grad()
        loss.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        both = torch.cat([chosen, rejected])
        assert ours["loss"] == pytest.approx(loss.mean().item(), abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert ours["rewards_chosen"] == pytest.approx(chosen.mean().item(), abs=1e-4)
        assert ours["rewards_rejected"] == pytest.approx(rejected.mean().item(), abs=1e-4)
        assert ours["rewards_std"] == pytest.approx(both.std(correction=0).item(), abs=1e-4)
        assert ours["accuracy"] == (chosen > rejected).float().mean().item()
    tiny.ok("export", tmp_path / "run", "-o", tmp_path / "exported")
    after = LlamaForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    for row in ROWS[:2]:
        expected = model(ids(tokenizer, row, "chosen")).logits
        torch.testing.assert_close(
            after(ids(tokenizer, row, "chosen")).logits, expected, atol=2e-4, rtol=0
        )


@pytest.mark.slow
def test_the_curve_depends_on_no_layout(made, tmp_path) -> None:
    expected = rm(made, tmp_path / "one", "--mbs", 4, "--no-packing")
    for name, flags in LAYOUTS.items():
        found = rm(made, tmp_path / name, *flags)
        for ours, theirs in zip(found, expected, strict=True):
            for key in ("loss", "accuracy", "margin", "rewards_chosen", "rewards_std"):
                assert ours[key] == pytest.approx(theirs[key], abs=2e-5), (name, key)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), name


@pytest.mark.slow
def test_lora_goes_on_in_another_layout_and_its_head_goes_with_it(made, tmp_path) -> None:
    lora = ["--lora", 4, "--lora-targets", "all", "-s", "model.optim.sched.max_steps=3"]
    expected = rm(made, tmp_path / "one", *lora, "--mbs", 2)
    rm(made, tmp_path / "two", *lora, steps=1)
    found = rm(made, tmp_path / "two", *lora, "--tp", 2, "--sequence-parallel")
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm", "rewards_chosen"):
            assert ours[key] == pytest.approx(theirs[key], abs=2e-5), key
    source = open_source(tmp_path / "two")
    assert "LoRA adapter of a reward model" in source.describe()
    assert described_head(source) == {"outputs": 1, "type": "binary_ranking", "dtype": "float32"}
    tiny.ok("export", tmp_path / "two", "--merge", "-o", tmp_path / "merged")
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    tiny.ok(
        "rm", "--score", made / "pairs.jsonl", "--ckpt", tmp_path / "two", "--precision", "fp32",
        "--gbs", 16, "-o", tmp_path / "scores.jsonl",
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(line["row"], line["answer"]) for line in lines] == [
        (row, side) for row in range(1, len(ROWS) + 1) for side in ("chosen", "rejected")
    ]
    with torch.no_grad():
        for line in lines:
            tokens = ids(tokenizer, ROWS[line["row"] - 1], line["answer"])
            assert line["score"] == pytest.approx(model(tokens).logits.item(), abs=1e-4)
            assert (line["tokens"], line["truncated"]) == (tokens.shape[1], False)
