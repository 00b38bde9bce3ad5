"""Write a torch_dist directory, chunk by chunk, that megatron-core and torch both load.

All chunks go into one ``__0_0.distcp`` as they come, so nothing but the index is kept in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from nemoalign.archive.dist_index import INDEX_NAME
from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.pickle_write import Call, Global, Instance, dump_pickle
from nemoalign.archive.sink import Sink
from nemoalign.archive.store import TensorInfo
from nemoalign.archive.torch_write import write_empty, write_record
from nemoalign.archive.zip_write import ALIGNMENT
from nemoalign.errors import ContentError, ShapeError

DATA_NAME = "__0_0.distcp"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""The content of ``metadata.json``; megatron-core takes its presence as proof of completeness."""

ChunkId = tuple[str, tuple[int, ...]]
"""Key of a tensor and offsets of the chunk."""


@dataclass
class _Tensor:
    info: TensorInfo
    chunks: dict[tuple[int, ...], _Chunk] = field(default_factory=dict[tuple[int, ...], "_Chunk"])


@dataclass(frozen=True)
class _Chunk:
    shape: tuple[int, ...]
    position: int
    length: int
    crc: int


class DistWriter:
    """Takes chunks of tensors in any order and writes the index last.

    A context manager: a clean exit is ``close``. Meanwhile the sink takes no other member. ``common``
    is the content of ``common.pt``, an empty dictionary unless given.
    """

    def __init__(
        self, sink: Sink, prefix: str = "model_weights/", *, common: bytes | None = None
    ) -> None:
        self._sink = sink
        self._common = common
        self._prefix = prefix
        self._tensors: dict[str, _Tensor] = {}
        if prefix:
            sink.add_directory(prefix.rstrip("/"))
        self._data_context = sink.member(prefix + DATA_NAME)
        self._data = self._data_context.__enter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._data_context.__exit__(kind, error, trace)

    @property
    def checksums(self) -> Mapping[ChunkId, int]:
        """The CRC-32 of every chunk so far, by key and offsets: it comes at no cost."""
        return {
            (key, offsets): chunk.crc
            for key, tensor in self._tensors.items()
            for offsets, chunk in tensor.chunks.items()
        }

    def add(
        self,
        key: str,
        global_shape: tuple[int, ...],
        offsets: tuple[int, ...],
        array: Array,
        kind: str,
    ) -> None:
        """Write one chunk: ``array`` (raw storage of ``kind``) at ``offsets`` of tensor ``key``."""
        info = TensorInfo(global_shape, kind)
        tensor = self._tensors.get(key, _Tensor(info))
        _check_chunk(key, tensor, info, offsets, array)
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        # Aligned as a whole, so that the data inside is aligned in the file as well.
        self._data.write(bytes(-self._data.tell() % ALIGNMENT))
        position = self._data.tell()
        length, crc = write_record(self._data.write, contiguous, kind)
        tensor.chunks[offsets] = _Chunk(array.shape, position, length, crc)
        self._tensors[key] = tensor

    def close(self) -> None:
        """Write the index; raises ContentError when a tensor is not covered by its chunks."""
        for key, tensor in self._tensors.items():
            _check_complete(key, tensor)
        self._data_context.__exit__(None, None, None)
        self._sink.add_bytes(self._prefix + INDEX_NAME, encode_index(self._tensors))
        with self._sink.member(self._prefix + "common.pt") as member:
            if self._common is None:
                write_empty(member.write)
            else:
                member.write(self._common)
        self._sink.add_bytes(self._prefix + "metadata.json", json.dumps(FORMAT).encode())


def _check_chunk(
    key: str, tensor: _Tensor, info: TensorInfo, offsets: tuple[int, ...], array: Array
) -> None:
    if info != tensor.info or offsets in tensor.chunks:
        raise ContentError(
            f"{key!r} is given a second time as {info.dtype} {list(info.shape)} at {offsets}; it "
            f"began as {tensor.info.dtype} {list(tensor.info.shape)}."
        )
    fits = len(offsets) == array.ndim == len(info.shape) and all(
        start >= 0 and start + length <= whole
        for start, length, whole in zip(offsets, array.shape, info.shape, strict=True)
    )
    if not fits or array.dtype != dtype(info.dtype).numpy:
        raise ShapeError(
            f"A chunk {array.dtype} {list(array.shape)} at {list(offsets)} does not fit {key!r}, "
            f"which is {info.dtype} {list(info.shape)}."
        )


def _check_complete(key: str, tensor: _Tensor) -> None:
    held = sum(TensorInfo(chunk.shape, tensor.info.dtype).size for chunk in tensor.chunks.values())
    if held != tensor.info.size:
        raise ContentError(
            f"{key!r} has {tensor.info.size} elements, but chunks with {held} were written."
        )


_METADATA = "torch.distributed.checkpoint.metadata"
_SIZE = Global("torch", "Size")


def encode_index(tensors: Mapping[str, _Tensor]) -> bytes:
    """Return ``.metadata``: the pickle of torch's ``Metadata`` with every chunk and its place."""
    entries = {key: _tensor_entry(tensor) for key, tensor in tensors.items()}
    places = {
        _place(key, offsets, number): _location(chunk)
        for key, tensor in tensors.items()
        for number, (offsets, chunk) in enumerate(tensor.chunks.items())
    }
    storage_meta: dict[str, Any] = {"checkpoint_id": None, "save_id": None, "load_id": None}
    storage_meta["modules"] = []
    return dump_pickle(
        _instance(
            "Metadata",
            {
                "state_dict_metadata": entries,
                "planner_data": {key: (key,) for key in tensors},
                "storage_data": places,
                "storage_meta": _instance("StorageMeta", storage_meta),
                "version": "1.0.0",
            },
        )
    )


def _tensor_entry(tensor: _Tensor) -> Instance:
    layout = Call(Global("torch.serialization", "_get_layout"), ("torch.strided",))
    memory_format = Call(Global(_METADATA, "_MEM_FORMAT_ENCODING"), (0,))
    element_type = Global("torch", tensor.info.dtype)
    properties = _instance("TensorProperties", (element_type, layout, False, memory_format, False))
    chunks = [
        _instance("ChunkStorageMetadata", {"offsets": _size(offsets), "sizes": _size(chunk.shape)})
        for offsets, chunk in tensor.chunks.items()
    ]
    state = {"properties": properties, "size": _size(tensor.info.shape), "chunks": chunks}
    return _instance("TensorStorageMetadata", state)


def _place(key: str, offsets: tuple[int, ...], number: int) -> Instance:
    return _instance("MetadataIndex", {"fqn": key, "index": number, "offset": _size(offsets)})


def _location(chunk: _Chunk) -> Instance:
    state = {"relative_path": DATA_NAME, "offset": chunk.position, "length": chunk.length}
    return Instance(Global("torch.distributed.checkpoint.filesystem", "_StorageInfo"), state)


def _size(lengths: tuple[int, ...]) -> Call:
    return Call(_SIZE, (lengths,))


def _instance(name: str, state: Any) -> Instance:
    return Instance(Global(_METADATA, name), state)
