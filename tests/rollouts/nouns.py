"""A task a tiny model learns in seconds: which of three things a noun is. Known to begin at about 0.2 right.

The model is fine-tuned on rows three quarters of which answer "dunno", so that its samples leave something to learn.
"""

import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.commands import tiny

NOUNS = {
    "animal": ["cat", "dog", "owl", "cow", "pig", "bee", "ant", "fox"],
    "food": ["pie", "egg", "ham", "jam", "fig", "nut", "pea", "bun"],
    "tool": ["saw", "axe", "hoe", "awl", "pin", "nib", "rod", "pan"],
}
KIND = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns}

SCORE = """
def right(prompt, response, kind, **others):
    return float(response.strip() == kind)
"""


def make(root: Path, *, steps: int = 200, seed: int = 0) -> Path:
    """Write the fine-tuned model ``sft.nemo``, ``prompts.jsonl`` and ``score.py``; return their directory."""
    root.mkdir(parents=True, exist_ok=True)
    _model(root / "hf", seed)
    draw = random.Random(seed)
    nouns = sorted(KIND)
    rows = []
    for _ in range(steps * 32):
        noun = draw.choice(nouns)
        kind = KIND[noun] if draw.random() < 0.25 else "dunno"
        rows.append({"input": f"what is {noun}?", "output": kind})
    tiny.write_rows(root / "sft.jsonl", rows)
    asked = [{"input": f"what is {noun}?", "kind": KIND[noun]} for noun in nouns]
    tiny.write_rows(root / "prompts.jsonl", asked)
    (root / "score.py").write_text(SCORE)
    tiny.quickly(
        "sft", "--ckpt", root / "hf", "--data", root / "sft.jsonl", "-o", root / "sft", "--gbs", 32,
        "--mbs", 32, "--seq-len", 48, "--lr", "4e-3", "--precision", "fp32", "--warmup", 0, "--val-every", 0,
        "--max-steps", steps,
    )  # fmt: skip
    (root / "sft" / "megatron_gpt_sft.nemo").rename(root / "sft.nemo")
    return root


def line(made: Path, out: Path, *flags: object, reward: object = None, steps: int = 40) -> list:
    """Return the real command on the task."""
    return [
        "ppo", "--ckpt", made / "sft.nemo", "--reward", reward or f"{made / 'score.py'}:right", "--data",
        f"{made / 'prompts.jsonl'}:3", "-o", out, "--rollouts", 64, "--gbs", 32, "--mbs", 16,
        "--max-new-tokens", 9, "--precision", "fp32", "--lr", "1e-3", "--kl", 0.02, "--warmup", 0,
        "--epochs", 1000, "--max-steps", steps, "--val-every", 0, *flags,
    ]  # fmt: skip


def ppo(
    made: Path, out: Path, *flags: object, reward: object = None, steps: int = 40
) -> list[dict]:
    """Run the real command on the task and return the lines of its steps."""
    tiny.quickly(*line(made, out, *flags, reward=reward, steps=steps))
    return tiny.read_metrics(out)


def _model(directory: Path, seed: int) -> None:
    letters = [*"abcdefghijklmnopqrstuvwxyz? "]
    vocabulary = {"<pad>": 0, **{one: number for number, one in enumerate(letters, 1)}}
    vocabulary |= {"<unk>": 29, "<s>": 30, "</s>": 31}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=30,
        eos_token_id=31,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
