"""LoRA adapters: reading what NeMo saves of them, and merging them into the weights they adapt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.archive.dtypes import Array, cast
from nemoalign.archive.store import Index, TensorInfo, TensorStore
from nemoalign.checkpoint.settings.values import section, text, whole_number
from nemoalign.checkpoint.sources.source import AdapterInfo
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError
from nemoalign.weights.names import is_reward_head
from nemoalign.weights.ops import FuseGateUp, FuseQKV, Op
from nemoalign.weights.tensors import expected_shapes

FUSED: Mapping[str, str] = {
    "self_attention.adapter_layer.lora_kqv_adapter": "self_attention.linear_qkv.weight",
    "self_attention.adapter_layer.lora_dense_attention_adapter": "self_attention.linear_proj.weight",
    "mlp.adapter_layer.lora_hto4h_adapter": "mlp.linear_fc1.weight",
    "mlp.adapter_layer.lora_4htoh_adapter": "mlp.linear_fc2.weight",
}
"""The weight of a layer that each of NeMo's adapters changes."""

UNFUSED: Mapping[str, tuple[str, tuple[str, ...], Op]] = {
    "self_attention.adapter_layer.lora_unfused_kqv_adapter": (
        "self_attention.linear_qkv.weight",
        ("q_adapter", "k_adapter", "v_adapter"),
        FuseQKV(),
    ),
    "mlp.adapter_layer.lora_unfused_hto4h_adapter": (
        "mlp.linear_fc1.weight",
        ("gate_adapter", "up_adapter"),
        FuseGateUp(),
    ),
}
"""The same for NeMo's canonical variant, which has an adapter for each part of a fused weight."""


def read_adapter(
    tensors: TensorStore, config: Mapping[str, Any], arch: Architecture, where: str
) -> AdapterInfo | None:
    """Return the adapter a checkpoint holds, or None when it holds none.

    Raises:
        ContentError: when a matrix lacks its counterpart.
        ShapeError: when the matrices fit neither each other nor the model nor the recorded rank.
    """
    if not tensors.tensors:
        return None
    tuning = section(config, "peft", "lora_tuning")
    ranks = {info.shape[0] for name, info in tensors.tensors.items() if "linear_in" in name}
    dim = whole_number(tuning, "adapter_dim", where) or max(ranks, default=0)
    if ranks != {dim}:
        raise ShapeError(
            f"{where} records LoRA rank {dim} (peft.lora_tuning.adapter_dim), but its matrices "
            f"have rank {', '.join(map(str, sorted(ranks))) or 'none'}."
        )
    alpha = tuning.get("alpha")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float)):
        raise ContentError(
            f"{where} has alpha {alpha!r:.60} (peft.lora_tuning), which is no number."
        )
    targets = tuning.get("target_modules")
    adapter = AdapterInfo(
        dim=dim,
        alpha=float(dim if alpha is None else alpha),
        targets=tuple(map(str, targets)) if isinstance(targets, list) else (),
        base=text(config, "restore_from_path"),
        weights=tensors,
    )
    shapes = expected_shapes(arch, vocab_rows=1)
    for name, (pairs, _) in adapted_tensors(adapter, where).items():
        if name not in shapes:
            raise ShapeError(f'{where} adapts "{name}", which its configuration does not have.')
        _check_matrices(pairs, tensors, name, shapes[name])
    return adapter


def find_base(recorded: str | None, adapter: Path) -> Path | None:
    """Return the base model that an adapter records: as it is, then beside the adapter."""
    if not recorded:
        return None
    tried = (Path(recorded), adapter.parent / recorded, adapter.parent / Path(recorded).name)
    mine = adapter.resolve()
    return next((path for path in tried if path.exists() and path.resolve() != mine), None)


def adapted_tensors(
    adapter: AdapterInfo, where: str
) -> dict[str, tuple[tuple[tuple[str, str], ...], Op | None]]:
    """Return for each adapted weight its pairs of (linear_in, linear_out), and how pairs are fused."""
    adapted: dict[str, tuple[tuple[tuple[str, str], ...], Op | None]] = {}
    names = [name for name in adapter.weights.tensors if not is_reward_head(name)]
    bases = {name.rsplit(".linear_", 1)[0] for name in names}
    for base in sorted(bases):
        layer, module = _split_layer(base)
        if module in FUSED:
            adapted[f"{layer}.{FUSED[module]}"] = ((_pair(base, adapter, where),), None)
            continue
        fused = module.rpartition(".")[0]
        target, parts, op = UNFUSED[fused]
        prefix = base.rpartition(".")[0]
        pairs = tuple(_pair(f"{prefix}.{part}", adapter, where) for part in parts)
        adapted[f"{layer}.{target}"] = (pairs, op)
    return adapted


def _split_layer(name: str) -> tuple[str, str]:
    """Return ("decoder.layers.3", "self_attention...")."""
    parts = name.split(".", 3)
    return ".".join(parts[:3]), parts[3]


def _pair(base: str, adapter: AdapterInfo, where: str) -> tuple[str, str]:
    pair = (f"{base}.linear_in.weight", f"{base}.linear_out.weight")
    for name in pair:
        if name not in adapter.weights.tensors:
            raise ContentError(f'{where} lacks "{name}", the other half of an adapter it holds.')
    return pair


def _check_matrices(
    pairs: tuple[tuple[str, str], ...], tensors: TensorStore, name: str, shape: tuple[int, ...]
) -> None:
    rows = sum(tensors.tensors[out].shape[0] for _, out in pairs)
    columns = {tensors.tensors[into].shape[1] for into, _ in pairs}
    if rows != shape[0] or columns != {shape[1]}:
        raise ShapeError(
            f'The adapter of "{name}" is {rows} x {min(columns)}, but the model its configuration '
            f"describes has {shape[0]} x {shape[1]} there."
        )


class MergedStore:
    """The weights of a base model with an adapter merged in, computed tensor by tensor in fp32."""

    def __init__(self, base: TensorStore, adapter: AdapterInfo, arch: Architecture) -> None:
        self._base = base
        self._adapter = adapter
        self._arch = arch
        self._adapted = adapted_tensors(adapter, "The adapter")
        lacking = [name for name in self._adapted if name not in base.tensors]
        if lacking:
            raise ContentError(
                f'The adapter changes "{lacking[0]}", which the base model does not have. They '
                "belong to different models."
            )
        self.tensors: Mapping[str, TensorInfo] = base.tensors

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor, merged where the adapter changes it: W + alpha / rank * B @ A."""
        if name not in self._adapted:
            return self._base.read(name, index)
        kind = self.tensors[name].dtype
        weight = cast(self._base.read(name), kind, "float32")
        delta = self._delta(name)
        if delta.shape != weight.shape:
            raise ShapeError(
                f'The adapter of "{name}" is {list(delta.shape)}, the base {list(weight.shape)}. '
                "They belong to different models."
            )
        delta *= np.float32(self._adapter.scale)
        delta += weight
        return cast(delta, "float32", kind)[index]

    def _delta(self, name: str) -> Array:
        pairs, op = self._adapted[name]
        products = [self._matrix(out) @ self._matrix(into) for into, out in pairs]
        return products[0] if op is None else op.to_megatron(products, self._arch)

    def _matrix(self, name: str) -> Array:
        weights = self._adapter.weights
        return cast(weights.read(name), weights.tensors[name].dtype, "float32")
