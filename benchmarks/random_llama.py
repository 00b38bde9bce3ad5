"""A llama of random bfloat16 weights with SmolLM2's tokenizer, made once, for sizes no package ships."""

from __future__ import annotations

from pathlib import Path

from side_by_side import CACHE, WORK

LAYER_BYTES = 2 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)


def random_llama(layers: int, vocab_size: int = 49152) -> Path:
    """Return a directory with ``layers`` layers of Llama-3.2-1B's shape; 16 and 128256 are that model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = WORK / f"random-llama-{layers}-layers-{vocab_size}"
    if not path.exists():
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
        making = path.with_suffix(".making")
        LlamaForCausalLM(config).save_pretrained(making)
        AutoTokenizer.from_pretrained(CACHE / "SmolLM2-135M-Instruct").save_pretrained(making)
        making.rename(path)
        torch.set_default_dtype(torch.float32)
    return path
