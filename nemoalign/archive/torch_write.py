"""Write torch.save files streaming, without torch; ``torch.load`` reads them, by mmap too."""

from __future__ import annotations

from collections.abc import Mapping

from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.pickle_write import Call, Global, Persistent, dump_pickle
from nemoalign.archive.regions import row_major_strides
from nemoalign.archive.store import TensorInfo, as_bytes
from nemoalign.archive.zip_write import ALIGNMENT, Write, ZipStream

_ORDERED_DICT = Global("collections", "OrderedDict")


class TorchWriter:
    """An OrderedDict of tensors: announced first, then given one by one in the same order."""

    def __init__(self, write: Write, tensors: Mapping[str, TensorInfo]) -> None:
        self._announced = list(tensors.items())
        self._given = 0
        self._stream = ZipStream(write)
        state = {
            name: _saved_tensor(info.shape, info.dtype, str(number))
            for number, (name, info) in enumerate(tensors.items())
        }
        _begin(self._stream, dump_pickle(Call(_ORDERED_DICT, (), state)))

    def add(self, name: str, array: Array) -> int:
        """Write the next tensor, raw storage as announced, and return its CRC-32."""
        expected, info = self._announced[self._given]
        assert name == expected, f"{expected} comes next, not {name}"
        assert array.shape == info.shape, f"{name} was announced as {info}"
        assert array.dtype == dtype(info.dtype).numpy, f"{name} was announced as {info}"
        self._given += 1
        return self._stream.add(f"data/{self._given - 1}", as_bytes(array))

    def skip(self) -> None:
        """Count the next tensor without its data, to learn how large the file becomes."""
        _, info = self._announced[self._given]
        self._given += 1
        self._stream.skip(f"data/{self._given - 1}", info.size_bytes)

    def close(self) -> int:
        """End the file and return its size."""
        assert self._given == len(self._announced), "every announced tensor is given"
        return _end(self._stream)


def torch_file_size(tensors: Mapping[str, TensorInfo]) -> int:
    """Return the bytes that a TorchWriter makes of these tensors."""
    writer = TorchWriter(len, tensors)
    for _ in tensors:
        writer.skip()
    return writer.close()


def write_torch_file(write: Write, tensors: Mapping[str, tuple[Array, str]]) -> int:
    """Write an OrderedDict of tensors and return its size.

    ``tensors`` is asked twice for each tensor (first for its shape), one at a time and in order, so
    a mapping that reads lazily keeps only one in memory.
    """
    infos = {name: TensorInfo(array.shape, kind) for name, (array, kind) in tensors.items()}
    writer = TorchWriter(write, infos)
    for name in tensors:
        writer.add(name, tensors[name][0])
    return writer.close()


def write_tensor(write: Write, array: Array, kind: str) -> int:
    """Write one tensor as torch.save would and return the size of its zip."""
    return write_record(write, array, kind)[0]


def write_record(write: Write, array: Array, kind: str) -> tuple[int, int]:
    """Write one tensor as ``write_tensor`` does; return the zip's size and the data's CRC-32."""
    stream = ZipStream(write)
    _begin(stream, dump_pickle(_saved_tensor(array.shape, kind, "0")))
    crc = stream.add("data/0", as_bytes(array))
    return _end(stream), crc


def write_empty(write: Write) -> int:
    """Write an empty dictionary as torch.save would and return the size of its zip."""
    stream = ZipStream(write)
    _begin(stream, dump_pickle({}))
    return _end(stream)


def _begin(stream: ZipStream, pickle: bytes) -> None:
    stream.add("data.pkl", pickle)
    stream.add(".format_version", b"1")
    stream.add(".storage_alignment", str(ALIGNMENT).encode())
    stream.add("byteorder", b"little")


def _end(stream: ZipStream) -> int:
    stream.add("version", b"3\n")
    # torch puts two numbers of 20 digits that identify the content; ours depend on it alone.
    stream.add(".data/serialization_id", f"{stream.position:020d}{stream.checksum:020d}".encode())
    return stream.close()


def _saved_tensor(shape: tuple[int, ...], name: str, key: str) -> Call:
    kind = dtype(name)
    size = TensorInfo(shape, name).size
    typed = kind.torch_storage != "UntypedStorage"
    storage = Global("torch" if typed else "torch.storage", kind.torch_storage)
    # An untyped storage counts bytes; all types without a typed one have a single byte.
    pid = Persistent(("storage", storage, key, "cpu", size * (1 if typed else kind.itemsize)))
    strides = row_major_strides(shape)
    view = (pid, 0, shape, strides, False, Call(_ORDERED_DICT))
    if typed:
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), view)
    return Call(Global("torch._utils", "_rebuild_tensor_v3"), (*view, Global("torch", name)))
