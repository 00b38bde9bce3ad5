"""Ways in which checkpoints break: a flipped byte, a rank of another save."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.checkpoint.models import FIXTURES


def flipped(source: Path, target: Path, offset: int) -> Path:
    """Copy a file with one bit of one byte changed."""
    data = bytearray(source.read_bytes())
    data[offset] ^= 0x10
    target.write_bytes(data)
    return target


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive with the standard library."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def unpacked(name: str, folder: Path) -> Path:
    """Unpack a fixture."""
    return unpack(FIXTURES / name, folder)


def with_changed_rank(
    name: str, folder: Path, rank: str, change: Callable[[dict[str, Any]], None]
) -> Path:
    """Unpack a fixture and save one rank's file again after ``change`` of its state, with torch."""
    file = unpacked(name, folder) / rank / "model_weights.ckpt"
    state = torch.load(file, weights_only=False)
    change(state)
    torch.save(state, file)
    return folder
