"""Tiny random llamas of transformers, and the same tensors as a store of canonical Megatron names.

The packing here is written from the format's description, not with the package's own operations.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nemoalign.archive.store import TensorInfo
from nemoalign.config.architecture import Architecture

VOCAB = 519


def llama(*, tied=False, layers=2, seed=0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.08,
        tie_word_embeddings=tied,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def architecture(config: LlamaConfig, **changes) -> Architecture:
    arch = Architecture(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        encoder_seq_length=config.max_position_embeddings,
        normalization="rmsnorm",
        layernorm_epsilon=config.rms_norm_eps,
        activation="fast-swiglu",
        bias=False,
        position_embedding_type="rope",
        rotary_base=config.rope_parameters["rope_theta"],
        share_embeddings_and_output_weights=config.tie_word_embeddings,
    )
    return replace(arch, **changes)


class Store:
    """A TensorStore in memory."""

    def __init__(self, arrays: dict[str, np.ndarray], dtype: str = "float32") -> None:
        self.arrays = arrays
        self.tensors = {name: TensorInfo(a.shape, dtype) for name, a in arrays.items()}

    def read(self, name, index=()):
        part = self.arrays[name][index]
        part.flags.writeable = False
        return part


def canonical(hf: dict[str, torch.Tensor], arch: Architecture) -> dict[str, np.ndarray]:
    """Rename and pack transformers' tensors (weights, or their gradients)."""
    out = {
        "embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
    }
    if not arch.share_embeddings_and_output_weights:
        out["output_layer.weight"] = hf["lm_head.weight"]
    for i in range(arch.num_layers):
        source, target = f"model.layers.{i}.", f"decoder.layers.{i}."
        q, k, v = (hf[f"{source}self_attn.{name}_proj.weight"] for name in "qkv")
        groups, width = arch.query_groups, arch.head_dim
        rows = [part.reshape(groups, -1, width, part.shape[1]) for part in (q, k, v)]
        attention, mlp = f"{target}self_attention.linear_", f"{target}mlp.linear_"
        out[f"{attention}qkv.weight"] = torch.cat(rows, 1).reshape(-1, q.shape[1])
        out[f"{attention}proj.weight"] = hf[f"{source}self_attn.o_proj.weight"]
        gate, up = (hf[f"{source}mlp.{name}_proj.weight"] for name in ("gate", "up"))
        out[f"{mlp}fc1.weight"] = torch.cat((gate, up))
        out[f"{mlp}fc2.weight"] = hf[f"{source}mlp.down_proj.weight"]
        out[f"{attention}qkv.layer_norm_weight"] = hf[f"{source}input_layernorm.weight"]
        out[f"{mlp}fc1.layer_norm_weight"] = hf[f"{source}post_attention_layernorm.weight"]
    return {name: tensor.detach().numpy().copy() for name, tensor in out.items()}


def weights(model: LlamaForCausalLM, arch: Architecture) -> dict[str, np.ndarray]:
    return canonical(model.state_dict(), arch)


def batch(rows=2, length=12, seed=1, ignored=4) -> SimpleNamespace:
    """Random tokens whose first labels are ignored, as a prompt's are."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (rows, length + 1), generator=draw)
    labels = tokens[:, 1:].clone()
    labels[:, :ignored] = -100
    labels[0, -1] = -100
    positions = torch.arange(length).expand(rows, length)
    return SimpleNamespace(tokens=tokens[:, :-1], labels=labels, position_ids=positions)


def label_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen.where(labels >= 0, 0.0)
