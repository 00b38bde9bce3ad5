"""Find the weights of a NeMo ViT: in an archive, an unpacked one or a checkpoint of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import Container
from nemoalign.archive.store import TensorInfo, TensorStore
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.sources.canonical import check_names
from nemoalign.checkpoint.sources.layouts import WEIGHTS_FILE, rank_files
from nemoalign.checkpoint.sources.lightning import Run
from nemoalign.checkpoint.sources.nemo import (
    CONFIG_NAME,
    HF_FOLDER,
    Settings,
    read_configs,
    read_json_object,
)
from nemoalign.checkpoint.sources.ranks import Rank, parallel_sizes
from nemoalign.checkpoint.sources.stores import JoinedStore, Made, MadeStore, Place
from nemoalign.checkpoint.vit.source import VitSource, vit_of
from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError, ShapeError, SourceError
from nemoalign.weights.names import PREFIXES
from nemoalign.weights.vit_tensors import CONV, vit_shapes, vit_split


def open_vit(container: Container, kind: str, folder: Path | None = None) -> VitSource:
    """Return the ViT inside a NeMo archive or unpacked directory.

    Raises:
        SourceError: when parts are missing or damaged.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    settings = Settings(f"{container.path}: {CONFIG_NAME}", *read_configs(container))
    sizes, names = _ranks(container)
    shards = [TorchFile(container.member(name), f"{container.path}: {name}") for name in names]
    files = {n: region for n, region in container.members.items() if n.startswith(HF_FOLDER)}
    source = replace(vit_of(container.path, kind, settings), files=files, folder=folder)
    return with_shards(source, cast("list[TensorStore]", shards), sizes)


def open_vit_run(run: Run, folder: Path | None = None) -> VitSource:
    """Return the ViT of a run; ``folder`` is what a person named to find it.

    Raises:
        SourceError: when parts are missing, damaged or hostile.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    where = str(run.saved.path)
    ranks = run.stores()
    if not ranks or any(len(stages) > 1 for stages in ranks.values()):
        raise ContentError(
            f"{where} is a ViT in a layout that NeMo does not document for a ViT: only one file, or "
            "one for every tensor-parallel rank, is supported."
        )
    shards = [ranks[rank][0] for rank in sorted(ranks)]
    source = vit_of(run.saved.path, "lightning", Settings(run.where, run.config, run.config))
    opened = with_shards(source, shards, parallel_sizes(ranks, where))
    return replace(opened, container=run.container, folder=folder)


def with_shards(source: VitSource, shards: Sequence[TensorStore], sizes: Rank) -> VitSource:
    """Return ``source`` with the weights in the files of its (pp, tp) ranks, rank 0 first.

    Raises:
        ContentError: when the ranks, or tensors and configuration, do not belong together, and for
            pipeline stages.
    """
    where = str(source.path)
    layout = _layout(sizes, where)
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
        layout=layout,
        arch=plain,
        weights=_repacked(weights, arch) if arch.megatron_legacy else weights,
        hf_config=hf_config,
        stored_config=source.stored_config
        | ({"megatron_legacy": False} if arch.megatron_legacy else {}),
        warnings=(*source.warnings, *_warnings(arch)),
    )


def _ranks(container: Container) -> tuple[Rank, list[str]]:
    """Return the (pp, tp) sizes and the file of every rank."""
    if WEIGHTS_FILE in container.members:
        return (1, 1), [WEIGHTS_FILE]
    ranks = rank_files(container)
    if not ranks:
        held = ", ".join(sorted(container.members)[:5])
        raise SourceError(
            f"{container.path} describes a ViT but has no weights ({WEIGHTS_FILE} or "
            f"mp_rank_00/{WEIGHTS_FILE}); it holds {held}. Fetch or save it again."
        )
    return parallel_sizes(ranks, str(container.path)), [ranks[rank] for rank in sorted(ranks)]


def _layout(sizes: Rank, where: str) -> str:
    pp, tp = sizes
    if pp != 1:
        raise ContentError(
            f"{where} is a ViT cut into {pp} pipeline stages, which NeMo does not document for a ViT "
            "and is not supported. Save it with pipeline_model_parallel_size 1."
        )
    return "single file" if tp == 1 else f"per-rank TP{tp}"


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
