"""LoRA in NeMo's names: read, checked and merged."""

from __future__ import annotations

import numpy as np
import pytest

from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.settings.adapter import MergedStore, read_adapter
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError
from nemoalign.weights.ops import FuseGateUp, FuseQKV

ARCH = Architecture(
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=12,
    num_attention_heads=4,
    num_query_groups=2,
    activation="fast-swiglu",
)
QKV = "decoder.layers.1.self_attention.linear_qkv.weight"
FC1 = "decoder.layers.0.mlp.linear_fc1.weight"
QKV_LORA = "decoder.layers.1.self_attention.adapter_layer.lora_kqv_adapter."
UNFUSED_QKV = "decoder.layers.1.self_attention.adapter_layer.lora_unfused_kqv_adapter."
UNFUSED_FC1 = "decoder.layers.0.mlp.adapter_layer.lora_unfused_hto4h_adapter."


class Tensors:
    """A store of arrays."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.tensors = {n: TensorInfo(a.shape, "float32") for n, a in arrays.items()}

    def read(self, name, index=()):
        return self.arrays[name][index]


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def pair(prefix, rows, columns, rank=2):
    return {
        f"{prefix}linear_in.weight": random(rank, columns),
        f"{prefix}linear_out.weight": random(rows, rank),
    }


def adapter_of(arrays, **tuning):
    config = {"peft": {"lora_tuning": {"adapter_dim": 2, **tuning}}, "restore_from_path": "b.nemo"}
    return read_adapter(Tensors(arrays), config, ARCH, "a.nemo")


def test_a_checkpoint_without_adapter_tensors_has_no_adapter():
    assert read_adapter(Tensors({}), {}, ARCH, "m.nemo") is None


def test_rank_alpha_targets_and_base_are_read():
    adapter = adapter_of(pair(QKV_LORA, 16, 8), alpha=16, target_modules=["attention_qkv"])
    assert (adapter.dim, adapter.alpha, adapter.scale) == (2, 16.0, 8.0)
    assert adapter.targets == ("attention_qkv",)
    assert adapter.base == "b.nemo"


def test_without_alpha_the_scale_is_one():
    assert adapter_of(pair(QKV_LORA, 16, 8)).scale == 1.0


def test_merging_adds_the_scaled_product_and_leaves_the_rest():
    lora = pair(QKV_LORA, 16, 8)
    base = {QKV: random(16, 8), FC1: random(24, 8)}
    merged = MergedStore(Tensors(base), adapter_of(lora, alpha=3), ARCH)
    into, out = lora.values()
    expected = base[QKV].astype(np.float64) + 1.5 * out.astype(np.float64) @ into
    np.testing.assert_allclose(merged.read(QKV), expected, rtol=1e-6, atol=1e-6)
    assert merged.read(FC1) is base[FC1] or np.shares_memory(merged.read(FC1), base[FC1])
    np.testing.assert_array_equal(merged.read(QKV, (slice(4, 6),)), merged.read(QKV)[4:6])


def test_separate_adapters_of_q_k_v_and_of_gate_up_are_fused_like_the_weights():
    parts = {"q_adapter.": 8, "k_adapter.": 4, "v_adapter.": 4}
    lora = {}
    for part, rows in parts.items():
        lora |= pair(UNFUSED_QKV + part, rows, 8)
    for part in ("gate_adapter.", "up_adapter."):
        lora |= pair(UNFUSED_FC1 + part, 12, 8)
    base = {QKV: np.zeros((16, 8), np.float32), FC1: np.zeros((24, 8), np.float32)}
    merged = MergedStore(Tensors(base), adapter_of(lora), ARCH)

    def product(prefix):
        return lora[f"{prefix}linear_out.weight"] @ lora[f"{prefix}linear_in.weight"]

    q, k, v = FuseQKV().to_hf(merged.read(QKV), ARCH, 0)
    for part, found in zip(parts, (q, k, v), strict=True):
        np.testing.assert_allclose(found, product(UNFUSED_QKV + part), rtol=1e-6)
    gate, up = FuseGateUp().to_hf(merged.read(FC1), ARCH, 0)
    np.testing.assert_allclose(gate, product(UNFUSED_FC1 + "gate_adapter."), rtol=1e-6)
    np.testing.assert_allclose(up, product(UNFUSED_FC1 + "up_adapter."), rtol=1e-6)


def test_half_an_adapter_is_refused():
    lora = pair(QKV_LORA, 16, 8)
    del lora[f"{QKV_LORA}linear_out.weight"]
    with pytest.raises(ContentError, match=r"lora_kqv_adapter\.linear_out\.weight"):
        adapter_of(lora)


def test_a_rank_that_the_configuration_does_not_record_is_refused():
    with pytest.raises(ShapeError, match=r"records LoRA rank 8 .* have rank 2"):
        adapter_of(pair(QKV_LORA, 16, 8), adapter_dim=8)


def test_matrices_of_another_model_are_refused():
    with pytest.raises(ShapeError, match=r"is 20 x 8, but .* 16 x 8"):
        adapter_of(pair(QKV_LORA, 20, 8))


def test_an_adapter_of_a_weight_the_base_lacks_is_refused():
    with pytest.raises(ContentError, match="different models"):
        MergedStore(Tensors({FC1: random(24, 8)}), adapter_of(pair(QKV_LORA, 16, 8)), ARCH)
