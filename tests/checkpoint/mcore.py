"""The tiny llama of ``fixtures/mcore``: where its layouts lie and what its tensors must be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.checkpoint.models import FIXTURES

MCORE = FIXTURES / "mcore"
HF = MCORE / "hf"

NEMO_CONFIG = {
    "mcore_gpt": True,
    "num_layers": 2,
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,
    "encoder_seq_length": 32,
    "max_position_embeddings": 32,
    "normalization": "rmsnorm",
    "layernorm_epsilon": 1e-5,
    "activation": "fast-swiglu",
    "bias": False,
    "position_embedding_type": "rope",
    "rotary_base": 50000.0,
    "share_embeddings_and_output_weights": False,
    "make_vocab_size_divisible_by": 8,
    "tokenizer": {"library": "huggingface", "type": "somewhere/else"},
}
"""The model as a ``.nemo`` describes it."""


def as_unpacked_nemo(variant: str, folder: Path, **changes: Any) -> Path:
    """Put one variant of the weights into an unpacked NeMo archive."""
    folder.mkdir(parents=True)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(NEMO_CONFIG | changes))
    shutil.copytree(MCORE / variant, folder / "model_weights")
    return folder


NEMO2_CONFIG = {
    "_target_": "nemo.collections.llm.gpt.model.llama.LlamaConfig",
    "num_layers": 2,
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,
    "seq_length": 32,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-5,
    "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "rotary_base": 50000.0,
    "share_embeddings_and_output_weights": False,
    "make_vocab_size_divisible_by": 8,
}
"""The model as NeMo 2 describes it."""
