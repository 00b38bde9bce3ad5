"""Write safetensors shards as transformers does, each tensor put at its place as it arrives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.sink import FileWriter, sync_directory, temporary_name
from nemoalign.archive.store import TensorInfo, as_bytes
from nemoalign.archive.zip_write import write_blocks
from nemoalign.errors import ContentError, ShapeError

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class _Place:
    file: str
    position: int
    info: TensorInfo


class SafetensorsWriter:
    """Writes declared tensors, each exactly once and in any order, under Hugging Face's names.

    Files appear under their names on a clean exit, the index last; an exception removes them.
    """

    def __init__(
        self,
        directory: Path,
        tensors: Mapping[str, TensorInfo],
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ) -> None:
        self.directory = directory
        self._tensors = dict(tensors)
        self._shards = plan_shards(self._tensors, max_shard_bytes)
        self._places: dict[str, _Place] = {}
        self._files: dict[str, FileWriter] = {}
        self._stack = ExitStack()
        self.checksums: dict[str, int] = {}
        """The CRC-32 of what was written so far, by tensor name."""

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for file, names in self._shards.items():
                self._open_shard(stack, file, names)
            self._stack = stack.pop_all()
        return self

    def _open_shard(self, stack: ExitStack, file: str, names: list[str]) -> None:
        temporary = temporary_name(self.directory / file)
        temporary.unlink(missing_ok=True)
        writer = FileWriter(temporary)
        stack.callback(temporary.unlink, missing_ok=True)
        stack.callback(writer.close)
        header = encode_header({name: self._tensors[name] for name in names})
        writer.write(header)
        position = len(header)
        for name in names:
            self._places[name] = _Place(file, position, self._tensors[name])
            position += self._tensors[name].size_bytes
        self._files[file] = writer

    def write(self, name: str, array: Array) -> None:
        """Write one tensor of raw storage; it must be as declared."""
        place = self._places.get(name)
        if place is None or name in self.checksums:
            what = "was not declared" if place is None else "is written a second time"
            raise ContentError(f"Tensor {name!r} {what} in {self.directory}.")
        wanted = (place.info.shape, dtype(place.info.dtype).numpy)
        if (array.shape, array.dtype) != wanted:
            raise ShapeError(
                f"Tensor {name!r} is {array.dtype} {list(array.shape)}, but {wanted[0]} of "
                f"{place.info.dtype} was declared for {self.directory}."
            )
        self.checksums[name] = self._put(self._files[place.file], place.position, as_bytes(array))

    def _put(self, file: FileWriter, position: int, data: memoryview) -> int:
        def write(block: bytes | memoryview) -> None:
            nonlocal position
            position += file.put(block, position)

        return write_blocks(write, data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if kind is None:
                self._publish()

    def _publish(self) -> None:
        missing = [name for name in self._places if name not in self.checksums]
        if missing:
            raise ContentError(
                f"{len(missing)} declared tensors were never written to {self.directory}, the "
                f"first is {missing[0]!r}."
            )
        for file, writer in self._files.items():
            writer.sync()
            writer.path.replace(self.directory / file)
        if len(self._shards) > 1:
            (self.directory / INDEX_NAME).write_text(self._index(), encoding="utf-8")
        sync_directory(self.directory)

    def _index(self) -> str:
        metadata = {
            "total_parameters": sum(info.size for info in self._tensors.values()),
            "total_size": sum(info.size_bytes for info in self._tensors.values()),
        }
        weight_map = {name: place.file for name, place in self._places.items()}
        index = {"metadata": metadata, "weight_map": weight_map}
        return json.dumps(index, indent=2, sort_keys=True) + "\n"


def plan_shards(tensors: Mapping[str, TensorInfo], max_shard_bytes: int) -> dict[str, list[str]]:
    """Return the tensor names of each file: in order, a new file when the next would not fit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, info in tensors.items():
        if shards[-1] and filled + info.size_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += info.size_bytes
    if len(shards) == 1:
        return {SINGLE_NAME: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": names
        for number, names in enumerate(shards, 1)
    }


def encode_header(tensors: Mapping[str, TensorInfo]) -> bytes:
    """Return length and JSON header of one file whose tensors follow in the order given."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, info in tensors.items():
        end = position + info.size_bytes
        entries[name] = {
            "dtype": dtype(info.dtype).safetensors,
            "shape": list(info.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the data, so it begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text
