"""The layouts in which a NeMo checkpoint keeps its weights, each read as canonical tensors.

One directory written by all ranks together (torch_dist), one torch file per rank, or a single file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from nemoalign.archive.dist import DistStore, read_backend
from nemoalign.archive.files import Container
from nemoalign.archive.store import TensorStore
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.canonical import Found, find_tensors, without_copies
from nemoalign.checkpoint.stores import JoinedStore, Place, PlacedStore
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, SourceError
from nemoalign.weights.names import layer_of
from nemoalign.weights.tensors import split_of

WEIGHTS_FILE = "model_weights.ckpt"
WEIGHTS_FOLDER = "model_weights"
_RANK = re.compile(
    r"(?:mp_rank_(\d{2,})|tp_rank_(\d{2,})_pp_rank_(\d{3,}))/" + re.escape(WEIGHTS_FILE)
)


@dataclass(frozen=True)
class Weights:
    """What a layout holds: model tensors, adapter tensors, repeated tensors, and its name."""

    layout: str
    model: TensorStore
    adapter: TensorStore
    copies: TensorStore


def open_weights(container: Container, arch: Architecture) -> Weights:
    """Return the weights of a NeMo archive or directory; as NeMo does, a file wins over a folder.

    Raises:
        SourceError: when there are no weights, or a rank's file is missing.
        ContentError: for a layout or for names that are not supported.
    """
    ranks = _rank_files(container)
    if WEIGHTS_FILE in container.members:
        return _from_ranks({(0, 0): WEIGHTS_FILE}, container, arch, "single file")
    if ranks:
        pp, tp = _complete(ranks, container)
        return _from_ranks(ranks, container, arch, f"per-rank TP{tp} PP{pp}")
    folder = container.under(WEIGHTS_FOLDER)
    if folder.members:
        return dist_weights(folder, arch)
    held = ", ".join(sorted(container.members)[:5])
    raise SourceError(
        f"{container.path} has a model_config.yaml but no weights ({WEIGHTS_FOLDER}/, "
        f"{WEIGHTS_FILE} or mp_rank_00/{WEIGHTS_FILE}); it holds {held}. Fetch or save it again."
    )


def dist_weights(folder: Container, arch: Architecture) -> Weights:
    """Return the weights of one distributed checkpoint, whatever its keys look like.

    Raises:
        SourceError: when the save was not completed.
        ContentError: for names that are not supported.
    """
    backend = read_backend(folder)
    if backend != "torch_dist":
        raise ContentError(
            f"{folder.path} keeps its weights as {backend}, which is not supported yet. NeMo "
            "2.0 to 2.2 rewrites it: convert_zarr_to_torch_dist.py."
        )
    found = find_tensors(DistStore(folder), str(folder.path))
    copies = without_copies(found.model, arch)
    return Weights(
        backend,
        PlacedStore(found.model),
        PlacedStore(found.adapter),
        PlacedStore(copies),
    )


def _rank_files(container: Container) -> dict[tuple[int, int], str]:
    """Return the file of every (pp, tp) rank."""
    files: dict[tuple[int, int], str] = {}
    for name in container.members:
        match = _RANK.fullmatch(name)
        if match:
            only_tp, tp, pp = match.groups()
            files[int(pp or 0), int(only_tp or tp)] = name
    return files


def _complete(ranks: Mapping[tuple[int, int], str], container: Container) -> tuple[int, int]:
    """Return (pp, tp) sizes; the directories count, since model_config.yaml may be stale."""
    pp, tp = (1 + max(rank[axis] for rank in ranks) for axis in (0, 1))
    missing = [(p, t) for p in range(pp) for t in range(tp) if (p, t) not in ranks]
    if missing:
        stage, shard = missing[0]
        raise SourceError(
            f"{container.path} has files of {len(ranks)} ranks, but none of tensor-parallel rank "
            f"{shard}, pipeline rank {stage}: at TP{tp} PP{pp} there must be {pp * tp}. Fetch the "
            "missing ones."
        )
    return pp, tp


def _from_ranks(
    ranks: Mapping[tuple[int, int], str], container: Container, arch: Architecture, layout: str
) -> Weights:
    stages = 1 + max(pp for pp, _ in ranks)
    model: dict[str, list[Place]] = {}
    adapter: dict[str, list[Place]] = {}
    copies: dict[str, list[Place]] = {}
    first_layer = 0
    for pp in range(stages):
        names = [ranks[pp, tp] for tp in range(len(ranks) // stages)]
        shards = [_found_in(container, name) for name in names]
        copied = [without_copies(shard.model, arch) for shard in shards]
        _gather(copies, copied, 0, container)
        _gather(model, [shard.model for shard in shards], first_layer, container)
        _gather(adapter, [shard.adapter for shard in shards], first_layer, container)
        first_layer += shards[0].num_layers if shards[0].model else arch.num_layers // stages
    stores = (_joined(places, arch) for places in (model, adapter, copies))
    return Weights(layout, *stores)


def _found_in(container: Container, name: str) -> Found:
    where = f"{container.path}: {name}"
    return find_tensors(cast("TensorStore", TorchFile(container.member(name), where)), where)


def _gather(
    whole: dict[str, list[Place]],
    shards: Sequence[Mapping[str, Place]],
    first_layer: int,
    container: Container,
) -> None:
    """Add one stage's tensors, with the places of all its ranks, under global layer numbers."""
    for name in shards[0]:
        lacking = [rank for rank, shard in enumerate(shards) if name not in shard]
        if lacking:
            raise ContentError(
                f'{container.path}: tensor-parallel rank {lacking[0]} lacks "{name}", which rank 0 '
                "has. The ranks are of different saves."
            )
        whole[_shifted(name, first_layer)] = [shard[name] for shard in shards]
    for rank, shard in enumerate(shards):
        extra = [name for name in shard if name not in shards[0]]
        if extra:
            raise ContentError(
                f'{container.path}: tensor-parallel rank {rank} holds "{extra[0]}", which rank 0 '
                "lacks. The ranks are of different saves."
            )


def _shifted(name: str, first_layer: int) -> str:
    """Layer numbers in a rank's file count from the first layer of its pipeline stage."""
    layer = layer_of(name)
    if layer is None:
        return name
    return name.replace(f"layers.{layer}.", f"layers.{layer + first_layer}.", 1)


def _joined(places: Mapping[str, list[Place]], arch: Architecture) -> JoinedStore:
    return JoinedStore({name: (split_of(name, arch), found) for name, found in places.items()})
