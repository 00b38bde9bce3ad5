"""Reward models as a command: transformers' own training, any layout, and what the archive is."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from tests.commands import tiny

ROWS = json.loads((Path(__file__).parents[1] / "fixtures/trl/dpo.json").read_text())["rows"]
PLAIN = ["--precision", "fp32", "--schedule", "constant", "--warmup", 0, "--weight-decay", 0]
LAYOUTS = {
    "micro batch 4, unpacked": ["--mbs", 4, "--no-packing"],
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
    expected = rm(made, tmp_path / "one", "--mbs", 1)
    for name, flags in LAYOUTS.items():
        found = rm(made, tmp_path / name, *flags)
        for ours, theirs in zip(found, expected, strict=True):
            for key in ("loss", "accuracy", "margin", "rewards_chosen", "rewards_std"):
                assert ours[key] == pytest.approx(theirs[key], abs=2e-5), (name, key)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), name
