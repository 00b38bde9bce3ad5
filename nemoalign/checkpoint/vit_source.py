"""Open a NeMo ViT classifier: a ``.nemo``, an unpacked one, or one file for each rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import Container, Region
from nemoalign.archive.store import TensorInfo, TensorStore
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.canonical import check_names
from nemoalign.checkpoint.layouts import WEIGHTS_FILE, rank_files
from nemoalign.checkpoint.nemo_source import CONFIG_NAME, HF_FOLDER, read_configs, read_json_object
from nemoalign.checkpoint.ranks import Rank, parallel_sizes
from nemoalign.checkpoint.settings import MAX_LAYERS
from nemoalign.checkpoint.source import KINDS, dtypes_of, rounded
from nemoalign.checkpoint.stores import JoinedStore, Made, MadeStore, Place
from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError, ShapeError, SourceError
from nemoalign.families.vit import FAMILY
from nemoalign.weights.names import PREFIXES
from nemoalign.weights.vit_rules import VitFamily
from nemoalign.weights.vit_tensors import CONV, vit_rows, vit_shapes, vit_split

VIT_CLASS = "MegatronVitClassificationModel"
PARTS = ("embedding", "attention", "mlp", "norms", "head")

_SIZES = tuple(f.name for f in fields(VitArchitecture) if f.type == "int")
_MAX_SIZE = 1 << 31


@dataclass(frozen=True, kw_only=True)
class VitSource:
    """A ViT classifier ready to be read; nothing of the weights has been read yet.

    It is to a ViT what ``Source`` is to a language model: ``weights`` has the canonical names of
    ``weights.vit_tensors``, whole, in raw storage, query_key_value always as [heads, 3, width].
    """

    path: Path
    kind: str
    layout: str
    config: dict[str, Any]
    stored_config: dict[str, Any]
    arch: VitArchitecture
    weights: TensorStore
    files: Mapping[str, Region]
    hf_config: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    folder: Path | None = None
    container: Container | None = None
    """Its files, where they are not simply those at ``path``."""
    family: VitFamily = FAMILY
    adapter: None = None

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The element types of the weights, the one with most elements first."""
        return dtypes_of(self.weights)

    @property
    def head(self) -> str:
        """What the head is, in the words of a person."""
        return "classifier" if self.arch.finetune else "pretraining head"

    def parameters(self) -> dict[str, int]:
        """Return the number of parameters by part of the model."""
        counts: dict[str, int] = dict.fromkeys(PARTS, 0)
        for name, row in vit_rows(self.arch).items():
            counts[row.part] += math.prod(self.weights.tensors[name].shape)
        return counts | {"total": sum(counts.values())}

    def facts(self) -> dict[str, Any]:
        """Return what a conversion report says of its source."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "layout": self.layout,
            "family": self.family.name,
            "generation": self.arch.generation,
            "dtypes": list(self.dtypes),
        }

    def describe(self) -> str:
        """Return what this is, in one line."""
        arch = self.arch
        words = [
            f"{KINDS[self.kind]} ({self.layout})",
            f"vit {self.head} of {arch.num_classes} classes",
            f"{arch.num_layers} layers of width {arch.hidden_size}",
            f"{arch.img_h}x{arch.img_w} images in patches of {arch.patch_dim}",
            f"{rounded(self.parameters()['total'])} parameters",
            "/".join(self.dtypes),
        ]
        return f"{self.path}: {', '.join(words)}"


def is_vit(config: Mapping[str, Any]) -> bool:
    """True for the model_config.yaml of a NeMo ViT classifier; ``target`` is a label, no import."""
    target = config.get("target")
    if isinstance(target, str) and target:
        return target.rpartition(".")[2] == VIT_CLASS
    return "patch_dim" in config and "num_classes" in config


def open_vit(container: Container, kind: str, folder: Path | None = None) -> VitSource:
    """Return the ViT inside a NeMo archive or unpacked directory.

    Raises:
        SourceError: when parts are missing or damaged.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    stored, config = read_configs(container)
    layout, names = _layout(container)
    shards = [TorchFile(container.member(name), f"{container.path}: {name}") for name in names]
    source = VitSource(
        path=container.path,
        kind=kind,
        layout=layout,
        config=config,
        stored_config=stored,
        arch=read_vit_architecture(config, f"{container.path}: {CONFIG_NAME}"),
        weights=MadeStore({}),
        files={n: r for n, r in container.members.items() if n.startswith(HF_FOLDER)},
        folder=folder,
    )
    return with_shards(source, cast("list[TensorStore]", shards))


def with_shards(source: VitSource, shards: Sequence[TensorStore]) -> VitSource:
    """Return ``source`` with the weights in the files of its tensor-parallel ranks, rank 0 first.

    Raises:
        ContentError: when the ranks, or tensors and configuration, do not belong together.
    """
    where = str(source.path)
    found = [_by_name(shard) for shard in shards]
    for rank, names in enumerate(found):
        odd = names.keys() ^ found[0].keys()
        if odd:
            raise ContentError(
                f'{where}: only one of the tensor-parallel ranks 0 and {rank} holds "{min(odd)}". '
                "The ranks are of different saves."
            )
    arch = replace(source.arch, generation=2 if CONV in found[0] else 1)
    expected = vit_shapes(arch)
    check_names({name: place.info for name, place in found[0].items()}, expected, where)
    weights = JoinedStore(
        {name: (vit_split(name, arch), [rank[name] for rank in found]) for name in expected}
    )
    check_vit_shapes(weights.tensors, expected, where)
    plain = replace(arch, megatron_legacy=False)
    files = source.files
    original = f"{HF_FOLDER}config.json"
    hf_config = (
        read_json_object(files[original], f"{where}: {original}") if original in files else None
    )
    return replace(
        source,
        arch=plain,
        weights=_repacked(weights, arch) if arch.megatron_legacy else weights,
        hf_config=hf_config,
        stored_config=source.stored_config
        | ({"megatron_legacy": False} if arch.megatron_legacy else {}),
        warnings=(*source.warnings, *_warnings(arch)),
    )


def read_vit_architecture(config: Mapping[str, Any], where: str) -> VitArchitecture:
    """Return the architecture of a resolved configuration, its values checked.

    Raises:
        ContentError: when a size is missing or impossible, or the model is cut in stages.
    """
    try:
        arch = VitArchitecture.from_nemo(config)
    except ContentError as error:
        raise ContentError(f"{where}: {error}") from error
    for name in (*_SIZES, "head_dim"):
        limit = MAX_LAYERS if name == "num_layers" else _MAX_SIZE
        if not 0 < getattr(arch, name) <= limit:
            raise ContentError(f"{where} has {name} {getattr(arch, name)}, which no model has.")
    if arch.kv_channels is None and arch.hidden_size % arch.num_attention_heads:
        raise ContentError(
            f"{where} has a hidden size of {arch.hidden_size}, which {arch.num_attention_heads} "
            "heads do not divide."
        )
    if arch.img_h % arch.patch_dim or arch.img_w % arch.patch_dim:
        raise ContentError(
            f"{where} has images of {arch.img_h}x{arch.img_w}, which patches of {arch.patch_dim} "
            "do not divide."
        )
    if arch.position_embedding_type not in ("learned_absolute", "learned_parameters"):
        raise ContentError(
            f"{where} has position_embedding_type {arch.position_embedding_type!r:.60}; a ViT has "
            "learned_absolute or learned_parameters."
        )
    return arch


def _layout(container: Container) -> tuple[str, list[str]]:
    """Return the layout's name and the file of every tensor-parallel rank."""
    if WEIGHTS_FILE in container.members:
        return "single file", [WEIGHTS_FILE]
    ranks = rank_files(container)
    if not ranks:
        held = ", ".join(sorted(container.members)[:5])
        raise SourceError(
            f"{container.path} describes a ViT but has no weights ({WEIGHTS_FILE} or "
            f"mp_rank_00/{WEIGHTS_FILE}); it holds {held}. Fetch or save it again."
        )
    layout = vit_layout(parallel_sizes(ranks, str(container.path)), str(container.path))
    return layout, [ranks[rank] for rank in sorted(ranks)]


def vit_layout(sizes: Rank, where: str) -> str:
    """Return the name of a layout by its (pp, tp) sizes; ContentError for pipeline stages."""
    pp, tp = sizes
    if pp != 1:
        raise ContentError(
            f"{where} is a ViT cut into {pp} pipeline stages, which NeMo does not document for a ViT "
            "and is not supported. Save it with pipeline_model_parallel_size 1."
        )
    return f"per-rank TP{tp}"


def _by_name(shard: TensorStore) -> dict[str, Place]:
    """Return every weight of a rank's file by canonical name; extra state is no weight."""
    places: dict[str, Place] = {}
    for key in shard.tensors:
        if key.endswith("_extra_state"):
            continue
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
        name = key[len(prefix) :]
        if name in places:
            raise ContentError(f'"{name}" is stored twice, as "{places[name].key}" and "{key}".')
        places[name] = Place(shard, key)
    return places


def check_vit_shapes(
    tensors: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Compare shapes with those the configuration asks for; ShapeError names the first other one."""
    for name, shape in expected.items():
        if tensors[name].shape == shape:
            continue
        hint = "One of the two belongs to another model."
        if ".position_embeddings" in name:
            hint = (
                "NeMo would resize the positions when it restores them, which loses precision: set "
                "img_h, img_w and class_token_length to what the model was trained with."
            )
        raise ShapeError(
            f'{where}: "{name}" has shape {list(tensors[name].shape)}, but its configuration asks '
            f"for {list(shape)}. {hint}"
        )


def _repacked(weights: TensorStore, arch: VitArchitecture) -> TensorStore:
    """Return the weights with query_key_value as [heads, 3, width] where they were [3, heads, width]."""

    def packed(name: str) -> Array:
        array = weights.read(name)
        apart = array.reshape(3, arch.num_attention_heads, arch.head_dim, *array.shape[1:])
        return np.ascontiguousarray(apart.swapaxes(0, 1)).reshape(array.shape)

    def made(name: str, info: TensorInfo) -> Made:
        read = packed if ".query_key_value." in name else weights.read
        return Made(info, (name,), lambda: read(name))

    return MadeStore({name: made(name, info) for name, info in weights.tensors.items()})


def _warnings(arch: VitArchitecture) -> list[str]:
    warnings = grid_warnings(arch)
    if arch.megatron_legacy:
        warnings.append(
            "The file has the packing of megatron_legacy, which NeMo itself cannot restore for a "
            "ViT; it is read and written on in the usual packing, with megatron_legacy: false."
        )
    return warnings


def grid_warnings(arch: VitArchitecture) -> list[str]:
    """Say it when the grid of patches is one that NeMo cannot restore."""
    if math.isqrt(arch.num_patches) ** 2 == arch.num_patches:
        return []
    return [
        f"Images of {arch.img_h}x{arch.img_w} have {arch.num_patches} patches, which is no square "
        "number: NeMo can train and save such a ViT, but not restore it."
    ]
