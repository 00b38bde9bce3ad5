"""Write a llama-shaped GGUF model and its tokenizer as a Hugging Face directory in bfloat16.

Usage: gguf_to_hf.py MODEL.gguf DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

NOT_OF_THE_MODEL = (
    "quantization_config",
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
)
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main(gguf: Path, target: Path) -> None:
    """Convert ``gguf`` and print the number of parameters."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    fields = AutoConfig.from_pretrained(**where).to_dict()
    for name in NOT_OF_THE_MODEL:
        fields.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**fields | {"architectures": ["LlamaForCausalLM"]}))
    tensors = dict(hf_tensor(tensor, model.config) for tensor in GGUFReader(gguf).tensors)
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, strict=True)
    tokens = {name: fields[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**tokens)
    logging.disable_progress_bar()
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    print(f"{model.num_parameters():,} parameters", file=sys.stderr)


def hf_tensor(tensor: ReaderTensor, config: LlamaConfig) -> tuple[str, torch.Tensor]:
    """Return a GGUF tensor's Hugging Face name and its weights as float32."""
    layer, stem = "", tensor.name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, number, stem = stem.split(".")
        layer = f"model.layers.{number}."
    weights = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(stem)
    if heads:
        # llama.cpp interleaves the two halves that rotary embedding pairs; Hugging Face keeps them apart.
        rows, columns = weights.shape
        weights = (
            weights.reshape(heads, rows // heads // 2, 2, columns)
            .swapaxes(1, 2)
            .reshape(rows, columns)
        )
    return f"{layer}{NAMES[stem]}.weight", weights


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
