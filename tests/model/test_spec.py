"""Every architecture field against the transformers model that has it, logits in fp32."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logits
from nemoalign.model.load import load_weights
from nemoalign.model.spec import refuse_unsupported
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny

ONE = ParallelLayout(1)
SIZES = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.08,
    "attn_implementation": "sdpa",
}
COMMON = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "encoder_seq_length": 64,
    "bias": False,
    "position_embedding_type": "rope",
    "normalization": "rmsnorm",
    "activation": "fast-swiglu",
    "share_embeddings_and_output_weights": False,
    "layernorm_epsilon": 1e-6,
}
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

FAMILIES = {
    "llama": (transformers.LlamaConfig(**SIZES), {}),
    "llama 3.1 rope, all four factors": (
        transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA31),
        {
            "rotary_base": 500000.0,
            "scale_positional_embedding": True,
            "scale_factor": 32.0,
            "old_context_len": 16,
        },
    ),
    "linear rope interpolation": (
        transformers.LlamaConfig(
            **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        ),
        {"seq_len_interpolation_factor": 4.0},
    ),
    "qwen2 qkv bias": (transformers.Qwen2Config(**SIZES), {"qkv_bias": True}),
    "qwen3 head norms": (
        transformers.Qwen3Config(**SIZES, head_dim=24),
        {"qk_layernorm": True, "kv_channels": 24},
    ),
    "mistral sliding window": (
        # megatron-core's window counts the positions before the query, transformers' includes it.
        transformers.MistralConfig(**SIZES, sliding_window=5),
        {"window_size": (4, 0)},
    ),
    "gemma scaled embeddings, zero-centred gamma": (
        transformers.GemmaConfig(**SIZES, head_dim=32),
        {
            "kv_channels": 32,
            "activation": "geglu",
            "openai_gelu": True,
            "layernorm_zero_centered_gamma": True,
            "apply_embedding_scaling": True,
            "share_embeddings_and_output_weights": True,
        },
    ),
    "nemotron layernorm1p, half rotary": (
        transformers.NemotronConfig(**SIZES, norm_eps=1e-5, partial_rotary_factor=0.5),
        {
            "normalization": "layernorm1p",
            "activation": "squared-relu",
            "rotary_percentage": 0.5,
            "layernorm_epsilon": 1e-5,
        },
    ),
    "starcoder2 biases, fused gelu": (
        transformers.Starcoder2Config(**SIZES, sliding_window=None, use_bias=True),
        {
            "bias": True,
            "normalization": "layernorm",
            "activation": "gelu",
            "layernorm_epsilon": 1e-5,
            "share_embeddings_and_output_weights": True,
        },
    ),
    "gpt2 learned positions": (
        transformers.GPT2Config(
            vocab_size=tiny.VOCAB,
            n_embd=64,
            n_inner=96,
            n_layer=2,
            n_head=4,
            n_positions=64,
            initializer_range=0.08,
        ),
        {
            "bias": True,
            "normalization": "layernorm",
            "activation": "gelu",
            "layernorm_epsilon": 1e-5,
            "num_query_groups": None,
            "position_embedding_type": "learned_absolute",
            "share_embeddings_and_output_weights": True,
        },
    ),
}


def family_model(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        # Fresh biases and norms are 0 and 1: they would hide a mistake.
        if parameter.ndim == 1:
            parameter.data += torch.randn_like(parameter) * 0.1
            assert "weight" in name or "bias" in name
    return model


def _gpt2_names(hf):
    """GPT-2's tensors under llama's names; its linears are stored transposed."""
    out = {
        "model.embed_tokens.weight": hf["transformer.wte.weight"],
        "wpe": hf["transformer.wpe.weight"],
    }
    for kind in ("weight", "bias"):
        out[f"model.norm.{kind}"] = hf[f"transformer.ln_f.{kind}"]
        for i in range(2):
            source, target = f"transformer.h.{i}.", f"model.layers.{i}."
            out[f"{target}input_layernorm.{kind}"] = hf[f"{source}ln_1.{kind}"]
            out[f"{target}post_attention_layernorm.{kind}"] = hf[f"{source}ln_2.{kind}"]
            qkv = hf[f"{source}attn.c_attn.{kind}"].chunk(3, -1)
            linears = dict(zip(("q", "k", "v"), qkv, strict=True))
            linears["o"] = hf[f"{source}attn.c_proj.{kind}"]
            for name, tensor in linears.items():
                out[f"{target}self_attn.{name}_proj.{kind}"] = (
                    tensor.t() if tensor.ndim == 2 else tensor
                )
            for name, ours in (("c_fc", "up"), ("c_proj", "down")):
                tensor = hf[f"{source}mlp.{name}.{kind}"]
                out[f"{target}mlp.{ours}_proj.{kind}"] = tensor.t() if tensor.ndim == 2 else tensor
    return out


RENAMES = {
    "model.norm.": "decoder.final_layernorm.",
    ".self_attn.o_proj.": ".self_attention.linear_proj.",
    ".self_attn.q_norm.": ".self_attention.q_layernorm.",
    ".self_attn.k_norm.": ".self_attention.k_layernorm.",
    ".mlp.down_proj.": ".mlp.linear_fc2.",
    ".mlp.c_proj.": ".mlp.linear_fc2.",
    ".mlp.c_fc.": ".mlp.linear_fc1.",
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".post_attention_layernorm.": ".mlp.linear_fc1.layer_norm_",
    "lm_head.": "output_layer.",
    "model.embed_tokens.": "embedding.word_embeddings.",
    "wpe": "embedding.position_embeddings.weight",
    "model.layers.": "decoder.layers.",
}
PACKED = (".q_proj.", ".k_proj.", ".v_proj.", ".gate_proj.", ".up_proj.")


def family_canonical(hf, arch: Architecture) -> dict[str, np.ndarray]:
    """Rename and pack any of the families above."""
    hf = _gpt2_names(hf) if "transformer.wte.weight" in hf else dict(hf)
    if arch.share_embeddings_and_output_weights:
        hf.pop("lm_head.weight", None)
    out = {}
    for name, tensor in hf.items():
        if not any(part in name for part in PACKED):
            for theirs, ours in RENAMES.items():
                name = name.replace(theirs, ours)
            out[name] = tensor
    for layer, kind in itertools.product(range(arch.num_layers), ("weight", "bias")):
        source, target = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        qkv = [hf.get(f"{source}self_attn.{name}_proj.{kind}") for name in "qkv"]
        if qkv[0] is not None:
            rest = qkv[0].shape[1:]
            shaped = [t.reshape(arch.query_groups, -1, arch.head_dim, *rest) for t in qkv]
            packed = torch.cat(shaped, 1).reshape(-1, *rest)
            out[f"{target}self_attention.linear_qkv.{kind}"] = packed
        halves = [hf.get(f"{source}mlp.{name}_proj.{kind}") for name in ("gate", "up")]
        if halves[1] is not None:
            out[f"{target}mlp.linear_fc1.{kind}"] = torch.cat([h for h in halves if h is not None])
    return {name: tensor.detach().numpy().copy() for name, tensor in out.items()}


@pytest.mark.parametrize("family", FAMILIES, ids=FAMILIES)
def test_logits_are_those_of_transformers(family):
    config, fields = FAMILIES[family]
    model = family_model(config)
    arch = Architecture(**{**COMMON, **fields})
    tokens = torch.randint(0, tiny.VOCAB, (2, 23), generator=torch.Generator().manual_seed(4))
    positions = torch.arange(23).expand(2, 23)
    batch = SimpleNamespace(tokens=tokens, labels=tokens, position_ids=positions)
    arrays = family_canonical(model.state_dict(), arch)
    with start(ONE, seed=1), torch.no_grad():
        chunks = build_model(arch, tiny.VOCAB, ONE, precision="fp32", settings=ModelSettings())
        load_weights(chunks, tiny.Store(arrays), arch, ONE, tiny.VOCAB)
        ours = forward_logits(chunks[0].eval(), batch)[..., : tiny.VOCAB]
        expected = model(tokens).logits
    # GPT-2 adds biases inside its products and spells gelu out, so it rounds elsewhere.
    assert (ours - expected).abs().max() <= (2e-6 if family == "gpt2 learned positions" else 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("transformer_block_type", "post_ln"),
        ("position_embedding_type", "alibi"),
        ("normalization", "scalenorm"),
        ("activation", "mish"),
        ("moe_token_dropping", True),
        ("window_size", (4, 4)),
    ],
)
def test_what_is_not_offered_is_refused_by_name(field, value):
    with pytest.raises(ContentError, match=f"{field} is .*{str(value)[:4].strip('(')}"):
        refuse_unsupported(Architecture(**{**COMMON, field: value}))
