"""Open a distributed checkpoint of megatron-core, whichever of its two formats it is in."""

from __future__ import annotations

from nemoalign.archive.dist import DistStore, read_backend
from nemoalign.archive.files import Container
from nemoalign.archive.zarr import ZarrStore
from nemoalign.errors import ContentError

STORES = {"torch_dist": DistStore, "zarr": ZarrStore}


def open_sharded(container: Container) -> DistStore | ZarrStore:
    """Return the store of the backend that ``metadata.json`` names.

    Raises:
        SourceError: when the save was not completed, or is damaged.
        ContentError: for a backend that megatron-core never had.
    """
    backend = read_backend(container)
    if backend not in STORES:
        raise ContentError(
            f"{container.path} is a distributed checkpoint of backend {backend[:60]!r}; only "
            f"{' and '.join(STORES)} are known."
        )
    return STORES[backend](container)
