"""torch.save files, read lazily, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, cast

from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.legacy_read import is_legacy, read_legacy
from nemoalign.archive.pickles import MAX_BYTES, load_pickle
from nemoalign.archive.regions import Region, map_strided
from nemoalign.archive.stand_ins import TensorRef
from nemoalign.archive.store import DAMAGED, Index, TensorInfo
from nemoalign.archive.zip_read import read_zip
from nemoalign.errors import SourceError

MAX_DEPTH = 16
"""Levels of dictionaries and lists above a tensor; an optimizer state in a .ckpt has six."""

MAX_NODES = 5_000_000


class TorchFile:
    """One torch.save file. Opening reads its directory; ``tree`` and ``tensors`` its pickle."""

    def __init__(self, region: Region, where: str) -> None:
        self.where = where
        self._zip = (read_legacy if is_legacy(region) else read_zip)(region, where)
        if "byteorder" in self._zip.entries and self._zip.entry("byteorder").read(16) != b"little":
            raise SourceError(
                f"{where} was written on a big-endian machine. Load it there with torch.load and "
                "save the tensors as safetensors."
            )

    @cached_property
    def tree(self) -> Any:
        """The saved value; tensors in it are TensorRef, foreign objects are Record."""
        return load_pickle(self._zip.entry("data.pkl").read(MAX_BYTES), self.where)

    @cached_property
    def refs(self) -> dict[str, TensorRef]:
        """Every tensor in ``tree`` by its flattened name."""
        return flatten_tensors(self.tree, self.where)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name; levels of nested dictionaries and lists are joined by ``/``."""
        return {name: ref.info for name, ref in self.refs.items()}

    @property
    def records(self) -> Mapping[str, tuple[Region, int]]:
        """Every record with the CRC-32 that the file states of it; ``data/KEY`` holds a storage."""
        sums = self._zip.checksums
        return {name: (self._zip.entry(name), sums[name]) for name in self._zip.entries}

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it as a read-only view of the file."""
        return self.read_ref(self.refs[name], index)

    def read_ref(self, ref: TensorRef, index: Index = ()) -> Array:
        """Return the tensor that ``tree`` refers to; only the bytes of the view are mapped."""
        storage = self._zip.entry(f"data/{ref.storage.key}")
        start = ref.offset * dtype(ref.info.dtype).itemsize
        return map_strided(storage, start, ref.info, ref.strides, index)


def flatten_tensors(tree: object, where: str = "A torch file") -> dict[str, TensorRef]:
    """Return the tensors in nested dictionaries, lists and tuples, named by the path to them."""
    found: dict[str, TensorRef] = {}
    waiting: list[tuple[tuple[str, ...], object]] = [((), tree)]
    for _ in range(MAX_NODES):
        if not waiting:
            return found
        path, value = waiting.pop()
        if isinstance(value, TensorRef):
            name = "/".join(path)
            if name in found:
                raise SourceError(f"{where} holds the name {name[:200]!r} twice. {DAMAGED}")
            found[name] = value
        elif len(path) < MAX_DEPTH:
            # Reversed, because the last that waits is looked at first: the file's order is kept.
            waiting += reversed([((*path, key), child) for key, child in _children(value)])
    raise SourceError(f"{where} nests more than {MAX_NODES} values. {DAMAGED}")


def _children(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, child in cast("dict[Any, object]", value).items():
            if isinstance(key, str | int):
                yield str(key), child
    elif isinstance(value, list | tuple):
        for number, child in enumerate(cast("list[object]", value)):
            yield str(number), child
