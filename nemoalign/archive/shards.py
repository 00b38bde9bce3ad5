"""The index of a Hugging Face model in several files: which file holds which tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from nemoalign.archive.files import Container
from nemoalign.archive.json_read import json_object
from nemoalign.archive.regions import Region
from nemoalign.archive.store import DAMAGED
from nemoalign.errors import ContentError, SourceError

MAX_INDEX_BYTES = 100_000_000

Place = TypeVar("Place")


def read_shards(
    container: Container, index_name: str, read: Callable[[Region, str], Mapping[str, Place]]
) -> dict[str, Place]:
    """Return every tensor that the index lists, as ``read`` finds it in its file.

    Raises:
        SourceError: when the index is damaged or a file is missing.
        ContentError: when a file holds other tensors than the index says.
    """
    where = f"{container.path}/{index_name}"
    index = json_object(container.member(index_name).read(MAX_INDEX_BYTES), where)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise SourceError(f'{where} has no "weight_map". {DAMAGED}')
    files = cast("dict[str, object]", weight_map)
    places: dict[str, Place] = {}
    for file in sorted({str(name) for name in files.values()}):
        for name, place in read(container.member(file), file).items():
            if files.get(name) != file:
                raise ContentError(
                    f"{file} holds {name!r}, which {where} places in {files.get(name)!r}. "
                    "The shards are of different saves: fetch the model again."
                )
            places[name] = place
    missing = sorted(files.keys() - places.keys())
    if missing:
        raise ContentError(
            f"{where} lists {missing[0]!r}, but {files[missing[0]]} does not hold it "
            f"({len(missing)} such names). Fetch the model again."
        )
    return places
