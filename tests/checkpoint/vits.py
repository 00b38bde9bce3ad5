"""Tiny ViT classifiers: as transformers makes them, and NeMo files made by torch with NeMo's keys."""

from __future__ import annotations

import io
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import ViTConfig, ViTForImageClassification

from nemoalign.checkpoint.open import open_checkpoint
from tests.checkpoint.models import FIXTURES

NEMO_VIT = FIXTURES / "vit_tp1.nemo"
LOGITS = FIXTURES / "vit_logits.npz"
TOLERANCE = 2e-5
"""What the fixture's manifest allows between two float32 implementations."""

CLASS = "nemo.collections.vision.models.megatron_vit_classification_models"
PARALLEL = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def fixture_state() -> dict[str, torch.Tensor]:
    """Return the tensors of NeMo's own file, without ``model.``, as torch reads them."""
    with tarfile.open(NEMO_VIT) as tar:
        content = tar.extractfile("./model_weights.ckpt").read()
    state = torch.load(io.BytesIO(content), weights_only=True)
    return {
        name.removeprefix("model."): tensor for name, tensor in state.items() if tensor is not None
    }


def fixture_config() -> dict[str, Any]:
    with tarfile.open(NEMO_VIT) as tar:
        return yaml.safe_load(tar.extractfile("./model_config.yaml").read())


def save_nemo(path: Path, state: dict[str, torch.Tensor], **changes: Any) -> Path:
    """Write a NeMo ViT with the fixture's settings but for ``changes``, extra states as None."""
    return save_ranks(path, {"model_weights.ckpt": state}, **changes)


def save_ranks(path: Path, files: dict[str, dict[str, torch.Tensor]], **changes: Any) -> Path:
    with tarfile.open(path, "w") as tar:
        _add(tar, "model_config.yaml", yaml.safe_dump(fixture_config() | changes).encode())
        for name, state in files.items():
            saved = io.BytesIO()
            torch.save(OrderedDict(with_extra_states(state)), saved)
            _add(tar, name, saved.getvalue())
    return path


def with_extra_states(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Return the keys as NeMo writes them: prefixed, and None beside every parallel layer."""
    keys: dict[str, torch.Tensor | None] = {}
    for name, tensor in state.items():
        keys[f"model.{name}"] = tensor
        module, _, leaf = name.rpartition(".")
        if leaf == "bias" and module.rpartition(".")[2] in PARALLEL:
            keys[f"model.{module}._extra_state"] = None
    return keys


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(f"./{name}")
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def save_hf(folder: Path, *, dtype: str = "float32", **changes: Any) -> Path:
    """Write a random ViTForImageClassification of 5 classes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "image_size": 16}
    heads = {"num_attention_heads": 4, "patch_size": 4, "num_labels": 5}
    model = ViTForImageClassification(ViTConfig(**(sizes | heads | changes)))
    model = model.to(getattr(torch, dtype))
    for parameter in model.parameters():  # norms and biases are not left at 1 and 0
        parameter.data += torch.randn_like(parameter) * 0.05
    model.save_pretrained(folder)
    return folder


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height, width, generator=generator)


def logits_of(folder: Path, pixels: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return what transformers computes, with every tensor of the directory loaded and used."""
    model, info = ViTForImageClassification.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        return model.eval().float()(torch.as_tensor(pixels)).logits.numpy()


def expected_logits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images NeMo was given and the logits it computed."""
    with np.load(LOGITS) as saved:
        return saved["images"], saved["logits"]


def second_generation(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same function with a convolution without bias, made by torch alone."""
    state = dict(state)
    weight = state.pop("backbone.linear_encoder.weight")
    bias = state.pop("backbone.linear_encoder.bias")
    state["backbone.conv1.weight"] = weight.view(len(weight), 4, 4, 3).permute(0, 3, 1, 2).clone()
    state["backbone.position_embeddings.weight"] = torch.cat(
        [
            state["backbone.position_embeddings.weight"][:1],
            state["backbone.position_embeddings.weight"][1:] + bias,
        ]
    )
    return state


def values_of(path) -> dict[str, np.ndarray]:
    source = open_checkpoint(path)
    return {name: np.asarray(source.weights.read(name)) for name in source.weights.tensors}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(found[name], tensor.numpy()), name


def sliced(tensor: torch.Tensor, name: str, rank: int) -> torch.Tensor:
    """Return a rank's half of a tensor as megatron's two kinds of parallel layers cut it."""
    if name.endswith(("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")):
        return tensor.chunk(2, 1)[rank].clone()
    if ".query_key_value." in name or ".dense_h_to_4h." in name:
        return tensor.chunk(2, 0)[rank].clone()
    return tensor
