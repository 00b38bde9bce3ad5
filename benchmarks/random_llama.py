"""A llama of random bfloat16 weights with SmolLM2's tokenizer, made once, for sizes no package ships.

Usage: random_llama.py LAYERS VOCAB_SIZE DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

from side_by_side import CACHE, WORK, run

LAYER_BYTES = 2 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)


def random_llama(layers: int, vocab_size: int = 49152) -> Path:
    """Return a directory with ``layers`` layers of Llama-3.2-1B's shape; 16 and 128256 are that model.

    A child process makes it: what this one's peak memory was, its later children's peaks would include.
    """
    path = WORK / f"random-llama-{layers}-layers-{vocab_size}"
    if not path.exists():
        making = path.with_suffix(".making")
        run([sys.executable, __file__, layers, vocab_size, making])
        making.rename(path)
    return path


def make(layers: int, vocab_size: int, target: Path) -> None:
    """Write the model and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1234)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(target)
    AutoTokenizer.from_pretrained(CACHE / "SmolLM2-135M-Instruct").save_pretrained(target)


if __name__ == "__main__":
    make(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
