"""A tiny whole model, and how ranks of NeMo keep it: written with torch, by hand, from the formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

H, F, HEADS, VOCAB, POSITIONS = 8, 12, 4, 16, 10
LAYERS = "decoder.layers."
FC1 = "mlp.linear_fc1."


def settings(layers: int, *, gated: bool, tied: bool, **more: Any) -> dict[str, Any]:
    """A model_config.yaml; of NeMo's own GPT unless told otherwise."""
    return {
        "num_layers": layers,
        "hidden_size": H,
        "ffn_hidden_size": F,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "encoder_seq_length": POSITIONS,
        "activation": "swiglu" if gated else "gelu",
        "share_embeddings_and_output_weights": tied,
        "override_vocab_size": VOCAB,
        **more,
    }


def whole_model(layers: int, *, gated: bool, tied: bool) -> dict[str, Tensor]:
    """Layer norms, biases and learned positions: everything a layer can have."""
    torch.manual_seed(7)
    rows = 2 * F if gated else F
    model = {
        "embedding.word_embeddings.weight": torch.randn(VOCAB, H),
        "embedding.position_embeddings.weight": torch.randn(POSITIONS, H),
    }
    for layer in range(layers):
        for name, shape in {
            "self_attention.linear_qkv.layer_norm_weight": (H,),
            "self_attention.linear_qkv.layer_norm_bias": (H,),
            "self_attention.linear_qkv.weight": (3 * H, H),
            "self_attention.linear_qkv.bias": (3 * H,),
            "self_attention.linear_proj.weight": (H, H),
            "self_attention.linear_proj.bias": (H,),
            "mlp.linear_fc1.layer_norm_weight": (H,),
            "mlp.linear_fc1.layer_norm_bias": (H,),
            "mlp.linear_fc1.weight": (rows, H),
            "mlp.linear_fc1.bias": (rows,),
            "mlp.linear_fc2.weight": (H, F),
            "mlp.linear_fc2.bias": (H,),
        }.items():
            model[f"{LAYERS}{layer}.{name}"] = torch.randn(shape)
    model["decoder.final_layernorm.weight"] = torch.randn(H)
    model["decoder.final_layernorm.bias"] = torch.randn(H)
    if not tied:
        model["output_layer.weight"] = torch.randn(VOCAB, H)
    return model


def stage_of(
    model: Mapping[str, Tensor], layers: Sequence[int], *, first: bool, last: bool
) -> dict[str, Tensor]:
    """The tensors of one pipeline stage, its layers counted from 0."""
    stage = {n: t for n, t in model.items() if first and n.startswith("embedding.")}
    for local, layer in enumerate(layers):
        prefix = f"{LAYERS}{layer}."
        for name, tensor in model.items():
            if name.startswith(prefix):
                stage[f"{LAYERS}{local}.{name.removeprefix(prefix)}"] = tensor
    if last:
        stage |= {n: t for n, t in model.items() if n.startswith(("decoder.final", "output_"))}
    if last and not first and "output_layer.weight" not in model:
        stage["output_layer.weight"] = model["embedding.word_embeddings.weight"]
    return stage


def shard_of(stage: Mapping[str, Tensor], tp: int, rank: int, *, gated: bool) -> dict[str, Tensor]:
    """What one tensor-parallel rank of a stage holds."""
    shard: dict[str, Tensor] = {}
    for name, tensor in stage.items():
        if "linear_fc1" in name and "layer_norm" not in name and gated:
            gate, up = tensor[:F], tensor[F:]
            tensor = torch.cat([gate.chunk(tp)[rank], up.chunk(tp)[rank]])
        elif name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            tensor = tensor.chunk(tp, dim=1)[rank]
        elif ("layer_norm" not in name and ("qkv" in name or "fc1" in name)) or name in (
            "embedding.word_embeddings.weight",
            "output_layer.weight",
        ):
            tensor = tensor.chunk(tp)[rank]
        shard[name] = tensor.clone()
    return shard


def legacy(shard: Mapping[str, Tensor], *, gated: bool, tied: bool) -> dict[str, Tensor]:
    """Names of NeMo's own GPT; a glu that is not fast keeps gate and up apart."""
    old: dict[str, Tensor] = {}
    for name, tensor in shard.items():
        for new_part, old_part in (
            ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
            ("self_attention.linear_qkv.", "self_attention.query_key_value."),
            ("self_attention.linear_proj.", "self_attention.dense."),
            ("mlp.linear_fc1.layer_norm_", "post_attention_layernorm."),
            ("mlp.linear_fc1.", "mlp.dense_h_to_4h."),
            ("mlp.linear_fc2.", "mlp.dense_4h_to_h."),
            ("decoder.", "encoder."),
        ):
            name = name.replace(new_part, old_part)
        if gated and "dense_h_to_4h." in name:
            half = len(tensor) // 2
            old[f"language_model.{name}"] = tensor[:half].clone()
            old[f"language_model.{name.replace('4h.', '4h_2.')}"] = tensor[half:].clone()
        elif tied and name == "output_layer.weight":
            old["word_embeddings.weight"] = tensor
        else:
            old[f"language_model.{name}"] = tensor
    return old


def nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The dictionaries that ``state_dict_for_save_checkpoint`` of NeMo's own GPT makes."""
    tree: dict[str, Any] = {"language_model": {}}
    for key, tensor in flat.items():
        if key == "word_embeddings.weight":
            tree["word_embeddings_for_head"] = {"weight": tensor}
            continue
        part, rest = key.removeprefix("language_model.").split(".", 1)
        branch = tree["language_model"].setdefault(part, {})
        if part == "embedding":
            branch.setdefault(rest.removesuffix(".weight"), {})["weight"] = tensor
        else:
            branch[rest] = tensor
    return tree


def rank_folder(tp: int, pp: int, stages: int) -> str:
    return f"tp_rank_{tp:02d}_pp_rank_{pp:03d}" if stages > 1 else f"mp_rank_{tp:02d}"


def save_unpacked(folder: Path, config: Mapping[str, Any], files: Mapping[str, Any]) -> Path:
    """Write an unpacked ``.nemo``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(dict(config)))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / name)
    return folder


def assert_same(weights: Any, model: Mapping[str, Tensor]) -> None:
    """Every tensor is there, whole, and equal in every bit."""
    assert weights.tensors.keys() == model.keys()
    for name, tensor in model.items():
        assert torch.equal(torch.from_numpy(weights.read(name).copy()), tensor), name
