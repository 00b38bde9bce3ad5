"""Families other than llama through the whole road: convert, two steps of sft, export."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaConfig, GPT2Config

from tests.commands import tiny
from tests.commands.test_sft_against_transformers import _encode

ROWS = 6
TOKENS = {"vocab_size": tiny.VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    "gemma": GemmaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        **TOKENS,
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **TOKENS),
}


def loss_of(directory: Path, made: list[dict]) -> float:
    """Return transformers' loss on the answers of some rows."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    total, count = 0.0, 0
    for row in made:
        prompt, answer = _encode(tokenizer, row, chat=False)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        target = torch.tensor(answer)
        total += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
        count += len(answer)
    return total / count


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sft_starts_at_transformers_loss_and_exports_a_better_model(config, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hf")
    tiny.make_tokenizer().save_pretrained(tmp_path / "hf")
    made = tiny.rows(2 * ROWS, seed=1)
    tiny.write_rows(tmp_path / "train.jsonl", made)
    tiny.quickly("convert", tmp_path / "hf", "-o", tmp_path / "m.nemo")
    tiny.quickly(
        "sft", "--ckpt", tmp_path / "m.nemo", "--data", tmp_path / "train.jsonl",
        "-o", tmp_path / "run", "--no-shuffle", "--precision", "fp32", "--gbs", ROWS, "--mbs", 3,
        "--lr", 2e-3, "--max-steps", 2,
    )  # fmt: skip
    tiny.quickly("export", tmp_path / "run" / "megatron_gpt_sft.nemo", "-o", tmp_path / "tuned")
    first, second = (entry["loss"] for entry in tiny.read_metrics(tmp_path / "run"))
    before = loss_of(tmp_path / "hf", made[:ROWS])
    assert first == pytest.approx(before, abs=1e-5)
    assert loss_of(tmp_path / "tuned", made[:ROWS]) < before
    assert second != first
