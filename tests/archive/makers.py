"""Small archives, good and evil, made with the standard library and torch."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from nemoalign.archive.dtypes import DTYPES
from nemoalign.archive.files import Region

FIXTURES = Path(__file__).parent.parent / "fixtures"

SHAPES = [(), (0,), (1,), (5,), (0, 3), (2, 0), (2, 3), (3, 2, 4), (2, 1, 3, 2)]


def region_of(path: Path) -> Region:
    return Region(path, 0, path.stat().st_size)


def raw_array(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return random bits of a type, as raw storage."""
    kind = DTYPES[name]
    rng = np.random.default_rng(seed)
    if name == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(rng.bytes(size), kind.numpy).reshape(shape)


def to_torch(array: np.ndarray, name: str) -> torch.Tensor:
    """Return the torch tensor of type ``name`` with the very same bits."""
    kind = getattr(torch, name)
    if array.size == 0:
        return torch.empty(array.shape, dtype=kind)
    flat = torch.frombuffer(bytearray(array.tobytes()), dtype=kind)
    return flat.reshape(array.shape)


def bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor in row-major order."""
    if tensor.numel() == 0:
        return b""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def make_tar(path: Path, members: dict[str, bytes], **kwargs: object) -> Path:
    with tarfile.open(path, "w:", **kwargs) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def save(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def replace_record(source: Path, target: Path, record: str, data: bytes) -> Path:
    """Copy a torch file with other bytes in one of its records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith(f"/{record}") else old.read(name))
    return target


def calling(module: str, name: str, *args: object, protocol: int = 2) -> bytes:
    """Return a pickle that calls ``module.name(*args)`` when it is loaded by Python's pickle."""
    body = pickle.dumps(args, protocol)[2:-1]
    if protocol < 4:
        return b"\x80\x02" + f"c{module}\n{name}\n".encode() + body + b"R."
    texts = b"".join(b"X" + struct.pack("<L", len(t)) + t.encode() for t in (module, name))
    body = pickle.dumps(args, 2)[2:-1]
    return b"\x80\x04" + texts + b"\x93" + body + b"R."
