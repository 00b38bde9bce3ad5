"""Open a Hugging Face PEFT directory as a LoRA adapter in NeMo's names.

Where q, k and v (and gate and up) of every layer share their A, the adapter is NeMo's usual one; else
it is NeMo's canonical variant, which holds exactly what PEFT holds. A module that PEFT leaves alone
beside one that it adapts gets a B of zeros, which changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.files import Container
from nemoalign.archive.safetensors import SafetensorsStore
from nemoalign.archive.safetensors_write import SINGLE_NAME
from nemoalign.archive.store import Index, TensorInfo, TensorStore
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.settings.adapter import read_adapter
from nemoalign.checkpoint.settings.peft_layers import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    LoraLayer,
    lora_layers,
)
from nemoalign.checkpoint.settings.values import text, whole_number
from nemoalign.checkpoint.sources.nemo import read_json_object
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.sources.stores import PlacedStore
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError, SourceError

TORCH_NAME = "adapter_model.bin"

_READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "base_model_name_or_path")
_WITHOUT_MEANING = (
    *(
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
    ),  # the tensors tell
    *("auto_mapping", "revision", "peft_version", "task_type", "inference_mode", "runtime_config"),
    *(
        "init_lora_weights",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
    ),  # the start
    *("fan_in_fan_out", "megatron_config", "megatron_core", "qalora_group_size"),
)
"""Settings that change nothing in what a saved adapter computes."""

_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base model as it is; the others change it."""


@dataclass(frozen=True)
class _Made:
    """A matrix in NeMo's names: the PEFT tensors it is made of (None: zeros), stacked by the layer."""

    info: TensorInfo
    parts: tuple[str | None, ...]
    layer: LoraLayer | None = None


class PeftStore:
    """NeMo's matrices made of PEFT's, one at a time."""

    def __init__(self, store: TensorStore, made: Mapping[str, _Made], arch: Architecture) -> None:
        self._store, self._made, self._arch = store, made, arch
        self.tensors: Mapping[str, TensorInfo] = {name: m.info for name, m in made.items()}

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a matrix or a slice of it."""
        made = self._made[name]
        if made.layer is None:
            return self._part(made.parts[0], made.info)[index]
        shapes = [(rows, made.info.shape[1]) for rows in made.layer.rows]
        infos = [TensorInfo(shape, made.info.dtype) for shape in shapes]
        parts = [self._part(part, info) for part, info in zip(made.parts, infos, strict=True)]
        return made.layer.fuse(parts, self._arch)[index]

    def _part(self, name: str | None, info: TensorInfo) -> Array:
        if name is not None:
            return self._store.read(name)
        return np.zeros(info.shape, dtype(info.dtype).numpy)


def is_peft(members: Iterable[str]) -> bool:
    """True when a directory with these files holds a PEFT adapter."""
    return CONFIG_NAME in members and (WEIGHTS_NAME in members or TORCH_NAME in members)


def recorded_base(container: Container) -> str | None:
    """Return what adapter_config.json says of the model it was trained on."""
    return text(_config(container), "base_model_name_or_path")


def open_peft(container: Container, base: Source) -> Source:
    """Return the PEFT adapter in a directory, trained on ``base``.

    Raises:
        ContentError: when it is more than plain LoRA, or adapts what ``base`` does not have.
        SourceError: when it is damaged.
    """
    where = str(container.path)
    settings = _config(container)
    _check_settings(settings, where)
    rank = whole_number(settings, "r", f"{where}: {CONFIG_NAME}")
    if rank is None:
        raise ContentError(f"{where}: {CONFIG_NAME} has no r, the rank of the adapter.")
    layers = lora_layers(base.family, base.arch)
    store = _weights(container)
    made, is_fused = _adapters(store, layers, where)
    targets = [layer.target for layer in layers if _is_adapted(layer, store)]
    tuning = {
        "target_modules": list(dict.fromkeys(targets)),
        "adapter_dim": rank,
        "alpha": _alpha(settings, rank, where),
        "adapter_dropout": settings.get("lora_dropout") or 0.0,
        "dropout_position": "pre",
        "column_init_method": "xavier",
        "row_init_method": "zero",
        "layer_selection": None,
        "weight_tying": False,
        "position_embedding_strategy": None,
        "variant": "nemo" if is_fused else "canonical",
    }
    peft = {"peft_scheme": "lora", "restore_from_path": None, "lora_tuning": tuning}
    told = {"peft": peft, "restore_from_path": str(base.path)}
    config = base.config | told
    return replace(
        base,
        path=container.path,
        kind="peft",
        layout="safetensors" if WEIGHTS_NAME in container.members else "torch",
        config=config,
        stored_config=base.stored_config | told,
        weights=PlacedStore({}),
        copies=PlacedStore({}),
        adapter=read_adapter(PeftStore(store, made, base.arch), config, base.arch, where),
        folder=None,
    )


def _config(container: Container) -> dict[str, Any]:
    return read_json_object(container.member(CONFIG_NAME), f"{container.path}: {CONFIG_NAME}")


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ContentError(f"{where} is a PEFT adapter of type {kind}; only LORA is supported.")
    known = (*_READ, *_WITHOUT_MEANING)
    asked = {n: v for n, v in settings.items() if n not in known and v not in (None, "none")}
    asked = {name: value for name, value in asked.items() if value}
    if settings.get("init_lora_weights") not in _STARTS:
        asked["init_lora_weights"] = settings["init_lora_weights"]
    for name, value in asked.items():
        raise ContentError(
            f"{where}: {CONFIG_NAME} has {name} {value!r:.60}, which NeMo's LoRA cannot represent. "
            "Merge it with PEFT (merge_and_unload) and convert the model."
        )


def _alpha(settings: Mapping[str, Any], rank: int, where: str) -> float:
    """Return the alpha that gives the same scale at alpha / rank; rank-stabilised is alpha / sqrt."""
    alpha = settings.get("lora_alpha", 8)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ContentError(f"{where}: {CONFIG_NAME} has lora_alpha {alpha!r:.60}, no number.")
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _weights(container: Container) -> TensorStore:
    if WEIGHTS_NAME in container.members:
        single = {SINGLE_NAME: container.members[WEIGHTS_NAME]}
        return SafetensorsStore(replace(container, members=single))
    where = f"{container.path}: {TORCH_NAME}"
    file: Any = TorchFile(container.member(TORCH_NAME), where)
    return file


def _adapters(
    store: TensorStore, layers: list[LoraLayer], where: str
) -> tuple[dict[str, _Made], bool]:
    """Return NeMo's matrices, and whether they are of the fused variant; every tensor is used once."""
    used = {name for layer in layers for module in layer.modules for name in _pair(module)}
    unknown = [name for name in store.tensors if name not in used]
    if unknown:
        raise ContentError(
            f'{where} holds "{unknown[0]}"{f" and {len(unknown) - 1} more" if unknown[1:] else ""}, '
            "which is no LoRA matrix of a layer that NeMo's adapters can change (attention and MLP)."
        )
    adapted = [layer for layer in layers if _is_adapted(layer, store)]
    if not adapted:
        raise SourceError(f"{where} holds no LoRA matrices. Save the adapter again.")
    for layer in adapted:
        _check_matrices(layer, store, where)
    is_fused = all(_shares_input(layer, store) for layer in adapted)
    made: dict[str, _Made] = {}
    for layer in adapted:
        made |= _matrices(layer, store, is_fused=is_fused)
    return made, is_fused


def _pair(module: str) -> tuple[str, str]:
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _is_adapted(layer: LoraLayer, store: TensorStore) -> bool:
    return any(name in store.tensors for module in layer.modules for name in _pair(module))


def _pairs(layer: LoraLayer, store: TensorStore) -> list[tuple[str, str]]:
    pairs = [_pair(module) for module in layer.modules]
    return [pair for pair in pairs if any(name in store.tensors for name in pair)]


def _shares_input(layer: LoraLayer, store: TensorStore) -> bool:
    pairs = _pairs(layer, store)
    first = store.read(pairs[0][0])
    others = [store.read(into) for into, _ in pairs[1:]]
    return all(
        first.shape == other.shape and first.tobytes() == other.tobytes() for other in others
    )


def _check_matrices(layer: LoraLayer, store: TensorStore, where: str) -> None:
    kinds: set[str] = set()
    for module, rows in zip(layer.modules, layer.rows, strict=True):
        into, out = _pair(module)
        lacking = [name for name in (into, out) if name not in store.tensors]
        if len(lacking) == 1:
            raise ContentError(f'{where} lacks "{lacking[0]}", half of an adapter it holds.')
        if lacking:
            continue
        left, right = store.tensors[out], store.tensors[into]
        kinds |= {left.dtype, right.dtype}
        rank = right.shape[0] if right.shape else 0
        if left.shape != (rows, rank) or right.shape != (rank, layer.columns):
            raise ShapeError(
                f"{where}: the adapter of {module} is {list(left.shape)} x {list(right.shape)}, but "
                f"the base model has {rows} x {layer.columns} there. Is it of another model?"
            )
    if len(kinds) > 1:
        raise ContentError(
            f"{where}: the adapter of {layer.modules[0]} has the element types "
            f"{', '.join(sorted(kinds))}. Save it in one dtype first."
        )


def _matrices(layer: LoraLayer, store: TensorStore, *, is_fused: bool) -> dict[str, _Made]:
    """Return the pair of a fused adapter, or the pairs of its parts."""
    present = _pairs(layer, store)
    into = store.tensors[present[0][0]]
    rank = into.shape[0]
    outs = [_pair(module)[1] for module in layer.modules]
    stored = tuple(out if out in store.tensors else None for out in outs)
    if is_fused or not layer.parts:
        info = TensorInfo((sum(layer.rows), rank), into.dtype)
        return {
            f"{layer.adapter}.linear_in.weight": _Made(into, (present[0][0],)),
            f"{layer.adapter}.linear_out.weight": _Made(info, stored, layer),
        }
    made: dict[str, _Made] = {}
    for part, module, out, rows in zip(layer.parts, layer.modules, stored, layer.rows, strict=True):
        # Beside zeros any A will do; that of a neighbour keeps the part trainable.
        source = _pair(module)[0] if out else present[0][0]
        made[f"{part}.linear_in.weight"] = _Made(into, (source,))
        made[f"{part}.linear_out.weight"] = _Made(TensorInfo((rows, rank), into.dtype), (out,))
    return made
