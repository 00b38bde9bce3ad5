"""Reading a checkpoint must not keep what was read before: the largest tensor is the bound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nemoalign.archive.dist_write import DistWriter
from nemoalign.archive.safetensors import SafetensorsWriter
from nemoalign.archive.sink import DirectoryWriter
from nemoalign.archive.store import TensorInfo

TENSORS, ROWS = 24, 1 << 20  # 24 tensors of 4 MiB

READ = """
import sys
from pathlib import Path
from nemoalign.archive.dist import DistStore
from nemoalign.archive.files import open_container
from nemoalign.archive.safetensors import SafetensorsStore
def peak():
    # ru_maxrss would begin with the memory of the process that ran this one.
    status = open("/proc/self/status").read().split()
    return int(status[status.index("VmHWM:") + 1])
store = {"dist": DistStore, "safetensors": SafetensorsStore}[sys.argv[2]]
opened = store(open_container(Path(sys.argv[1])))
names = list(opened.tensors)
total = int(opened.read(names[0]).sum())
before = peak()
for name in names[1:]:
    total += int(opened.read(name).sum())
grown = peak() - before
print(total, grown, "torch" in sys.modules)
"""


def write_dist(path: Path) -> None:
    with DirectoryWriter(path) as sink, DistWriter(sink, "") as writer:
        for number in range(TENSORS):
            writer.add(f"t{number}", (ROWS,), (0,), np.ones(ROWS, np.int32), "int32")


def write_safetensors(path: Path) -> None:
    infos = {f"t{number}": TensorInfo((ROWS,), "int32") for number in range(TENSORS)}
    with SafetensorsWriter(path, infos) as writer:
        for name in infos:
            writer.write(name, np.ones(ROWS, np.int32))


@pytest.mark.parametrize("kind", ["dist", "safetensors"])
def test_memory_does_not_grow_with_the_number_of_tensors_read(kind: str, tmp_path: Path) -> None:
    {"dist": write_dist, "safetensors": write_safetensors}[kind](tmp_path / "d")
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "d", kind],
        check=True,
        capture_output=True,
        text=True,
    )
    total, grown_kib, imported_torch = done.stdout.split()
    assert int(total) == TENSORS * ROWS
    assert int(grown_kib) < 6 * 1024
    assert imported_torch == "False"
