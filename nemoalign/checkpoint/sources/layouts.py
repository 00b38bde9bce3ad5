"""The layouts in which a NeMo checkpoint keeps its weights, each read as canonical tensors.

One directory written by all ranks together (torch_dist, zarr), a torch file per rank, or one file.
"""

from __future__ import annotations

from typing import cast

from nemoalign.archive.files import Container
from nemoalign.archive.sharded import open_sharded
from nemoalign.archive.store import TensorStore
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.sources.canonical import (
    Found,
    find_tensors,
    optimizer_state,
    without_copies,
)
from nemoalign.checkpoint.sources.ranks import Rank, Weights, join_ranks, parallel_sizes, rank_of
from nemoalign.checkpoint.sources.stores import PlacedStore
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, SourceError

WEIGHTS_FILE = "model_weights.ckpt"
WEIGHTS_FOLDER = "model_weights"


def open_weights(container: Container, arch: Architecture) -> Weights:
    """Return the weights of a NeMo archive or directory; as NeMo does, a file wins over a folder.

    Raises:
        SourceError: when there are no weights, or a rank's file is missing.
        ContentError: for a layout or for names that are not supported.
    """
    where = str(container.path)
    if WEIGHTS_FILE in container.members:
        found = _found_in(container, WEIGHTS_FILE)
        return join_ranks({(0, 0): [found]}, arch, where, "single file")
    names = rank_files(container)
    if names:
        pp, tp = parallel_sizes(names, where)
        ranks = {rank: [_found_in(container, name)] for rank, name in names.items()}
        return join_ranks(ranks, arch, where, f"per-rank TP{tp} PP{pp}")
    folder = container.under(WEIGHTS_FOLDER)
    if folder.members:
        return dist_weights(folder, arch)
    held = ", ".join(sorted(container.members)[:5])
    raise SourceError(
        f"{where} has a model_config.yaml but no weights ({WEIGHTS_FOLDER}/, "
        f"{WEIGHTS_FILE} or mp_rank_00/{WEIGHTS_FILE}); it holds {held}. Fetch or save it again."
    )


def dist_weights(folder: Container, arch: Architecture) -> Weights:
    """Return the weights of one distributed checkpoint, whatever its keys look like.

    Raises:
        SourceError: when the save was not completed.
        ContentError: for names that are not supported.
    """
    store = open_sharded(folder)
    found = find_tensors(store, str(folder.path))
    optimizer = optimizer_state(found)
    copies = without_copies(found.model, arch)
    return Weights(
        store.backend,
        PlacedStore(found.model),
        PlacedStore(found.adapter),
        PlacedStore(copies),
        is_legacy=found.is_legacy,
        optimizer=PlacedStore(optimizer) if optimizer else None,
    )


def rank_files(container: Container) -> dict[Rank, str]:
    """Return the weights file of every rank."""
    files: dict[Rank, str] = {}
    for name in container.members:
        folder, _, file = name.rpartition("/")
        rank = rank_of(folder)
        if rank is None or file != WEIGHTS_FILE:
            continue
        if rank in files:
            raise ContentError(
                f"{container.path} holds {files[rank]} and {name}, which are the same rank of two "
                "saves. Keep one of them."
            )
        files[rank] = name
    return files


def _found_in(container: Container, name: str) -> Found:
    where = f"{container.path}: {name}"
    return find_tensors(cast("TensorStore", TorchFile(container.member(name), where)), where)
