"""Hugging Face weights from before safetensors: ``pytorch_model.bin``, or shards with an index."""

from __future__ import annotations

from collections.abc import Mapping

from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import Container
from nemoalign.archive.regions import Region
from nemoalign.archive.safetensors import INDEX_NAME, SINGLE_NAME, SafetensorsStore
from nemoalign.archive.shards import read_shards
from nemoalign.archive.store import Index, TensorInfo
from nemoalign.archive.torch_file import TorchFile

BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"


class BinStore:
    """The tensors of a Hugging Face directory in torch files, read as data.

    Two names may share one storage (a tied output layer, a view); each reads as its own tensor.
    """

    layout = BIN_NAME

    def __init__(self, container: Container) -> None:
        self.path = container.path
        self._files: dict[str, TorchFile] = {}
        if BIN_INDEX_NAME in container.members:
            self._files = read_shards(container, BIN_INDEX_NAME, self._open)
        else:
            self._files = dict(self._open(container.member(BIN_NAME), BIN_NAME))
        self.tensors: Mapping[str, TensorInfo] = {
            name: file.tensors[name] for name, file in self._files.items()
        }

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it as a read-only view of the file."""
        return self._files[name].read(name, index)

    def _open(self, region: Region, name: str) -> Mapping[str, TorchFile]:
        file = TorchFile(region, f"{self.path}: {name}")
        return dict.fromkeys(file.tensors, file)


def open_hf_weights(container: Container) -> SafetensorsStore | BinStore:
    """Return the weights of a Hugging Face directory; safetensors win over torch files."""
    has_safetensors = not {SINGLE_NAME, INDEX_NAME}.isdisjoint(container.members)
    has_bin = not {BIN_NAME, BIN_INDEX_NAME}.isdisjoint(container.members)
    return BinStore(container) if has_bin and not has_safetensors else SafetensorsStore(container)
