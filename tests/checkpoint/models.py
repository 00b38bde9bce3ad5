"""Tiny random models that transformers makes, and what it says of a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nemoalign.log import PlainReporter

FIXTURES = Path(__file__).parents[1] / "fixtures"

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMAS: dict[str, dict[str, Any]] = {
    "gqa": {"num_key_value_heads": 2},
    "mha": {"dtype": "bfloat16"},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1, "dtype": "float16"},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE, "max_position_embeddings": 512},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "wide heads": {"head_dim": 24, "num_key_value_heads": 2},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "sharded": {"max_shard_size": "40KB"},
}
IDS = torch.tensor([[1, 5, 60, 7, 12, 0, 33, 2], [9, 8, 7, 6, 5, 4, 3, 2]])


def save_llama(folder: Path, *, max_shard_size: str = "5GB", **changes: Any) -> Path:
    """Write a random llama with a vocabulary of 61, which no layout divides, and tokenizer files."""
    torch.manual_seed(0)
    dtype = changes.pop("dtype", "float32")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 61}
    config = LlamaConfig(**(sizes | {"num_attention_heads": 4, "rms_norm_eps": 1e-5} | changes))
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    for parameter in model.parameters():  # norms and biases are not left at 1 and 0
        parameter.data += torch.randn_like(parameter) * 0.05
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(61)))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": "w2"}')
    return folder


def tokenizer_json(size: int) -> dict[str, Any]:
    vocab = {f"w{number}": number for number in range(size)}
    return {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": vocab}}


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a directory with the safetensors library."""
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return state


def assert_same_tensors(found: Path, expected: Path) -> None:
    ours, theirs = state_of(found), state_of(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


def logits_of(folder: Path, ids: torch.Tensor | np.ndarray = IDS) -> np.ndarray:
    """Return what transformers computes with the model in a directory, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        return model.eval().float()(torch.as_tensor(ids)).logits.numpy()


class BitFlip(PlainReporter):
    """A faulty disk: when verification begins, one bit of what was written in a folder changes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(quiet=True)
        self.folder = folder

    def progress(self, title: str, total: float, unit: str):
        if title == "Verifying":
            written = [path for path in self.folder.rglob("*") if path.is_file()]
            largest = max(written, key=lambda path: path.stat().st_size)
            content = bytearray(largest.read_bytes())
            content[len(content) // 2] ^= 1
            largest.write_bytes(content)
        return super().progress(title, total, unit)
