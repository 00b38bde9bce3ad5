"""Peak memory of ``nemoalign inspect`` and ``reshard`` on an archive larger than memory should be.

A llama-shaped .nemo of --gigabytes is made whose weights are zeros, so that it is a sparse file; it is
inspected, and resharded to TP8 PP4 rank files with verification on. Fails when reshard's peak memory is above
1 GiB + 3 x the largest tensor, or inspect takes more than half a second or reads more than 5 MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import WORK, publish, run, table

from nemoalign.archive.dist_write import DistWriter
from nemoalign.archive.sink import FileWriter
from nemoalign.archive.tar import TarWriter
from nemoalign.config.architecture import Architecture
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.weights.names import stacked_key
from nemoalign.weights.tensors import expected_shapes

VOCABULARY = 32_000
HOLE_BYTES = 1 << 16
INSPECT_SECONDS = 0.5
INSPECT_BYTES = 5_000_000
READ = """
import sys
from pathlib import Path
from nemoalign.checkpoint.inspect import inspect

def read():
    return int(Path("/proc/self/io").read_text().split()[1])

before = read()
inspect(sys.argv[1])
print(read() - before)
"""


def main() -> None:
    """Make the archive, measure both commands and publish big_archive.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make is not None:
        print(make(options.make, options.gigabytes))
        return
    folder = WORK / "big"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive, target = folder / "big.nemo", folder / "ranks.nemo"
    # Made by a child: what this process's peak memory was, its later children's peaks would include.
    making = [sys.executable, __file__, "--gigabytes", options.gigabytes, "--make", archive]
    largest = int(run(making).stdout)
    nemoalign = [sys.executable, "-m", "nemoalign"]
    run([*nemoalign, "inspect", archive])
    inspected = run([*nemoalign, "inspect", archive])
    read = int(run([sys.executable, "-c", READ, archive]).stdout)
    resharded = run(
        [*nemoalign, "reshard", archive, "-o", target, "--tp", 8, "--pp", 4, "--format", "ranks"]
    )
    size = archive.stat().st_size
    allowed = (1 << 30) + 3 * largest
    figures: dict[str, Any] = {
        "bytes": size,
        "bytes_on_disk": archive.stat().st_blocks * 512,
        "inspect_seconds": inspected.seconds,
        "inspect_read_bytes": read,
        "inspect_peak_rss_bytes": inspected.peak_rss_bytes,
        "reshard_seconds": resharded.seconds,
        "reshard_peak_rss_bytes": resharded.peak_rss_bytes,
        "allowed_rss_bytes": allowed,
    }
    publish("big_archive", figures, markdown(figures))
    shutil.rmtree(folder)
    if resharded.peak_rss_bytes > allowed:
        sys.exit("reshard needed more memory than it may")
    if inspected.seconds > INSPECT_SECONDS or read > INSPECT_BYTES:
        sys.exit("inspect took longer or read more than it may")


def make(path: Path, gigabytes: float) -> int:
    """Write the archive and return the bytes of its largest tensor."""
    sizes = {"hidden_size": 4096, "ffn_hidden_size": 14_336, "num_attention_heads": 32}
    layer = 2 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14_336)
    config: dict[str, Any] = {
        "mcore_gpt": True,
        "num_layers": max(4, round(gigabytes * 1e9 / layer / 4) * 4),
        **sizes,
        "num_query_groups": 8,
        "encoder_seq_length": 8192,
        "max_position_embeddings": 8192,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "bias": False,
        "position_embedding_type": "rope",
        "share_embeddings_and_output_weights": False,
        "precision": "bf16",
        "override_vocab_size": VOCABULARY,
        "tokenizer": {"library": "huggingface", "type": "none"},
    }
    shapes = expected_shapes(Architecture.from_nemo(config), VOCABULARY)
    FileWriter.put = put_sparsely
    with TarWriter(path) as tar:
        tar.add_bytes("model_config.yaml", dump_checkpoint_config(config).encode())
        with DistWriter(tar) as writer:
            for name, shape in shapes.items():
                key, layer = stacked_key(name)  # layer: (number,), or () where nothing is stacked
                whole = (*(config["num_layers"] for _ in layer), *shape)
                zeros = np.zeros((1,) * len(layer) + shape, np.uint16)
                writer.add(key, whole, (*layer, *(0,) * len(shape)), zeros, "bfloat16")
    return max(2 * int(np.prod(shape)) for shape in shapes.values())


_put = FileWriter.put


def put_sparsely(self: FileWriter, data: bytes | memoryview, position: int) -> int:
    """Write as ``FileWriter.put`` does, but leave a hole where there are only zeros."""
    view = memoryview(data).cast("B")
    if len(view) < HOLE_BYTES or np.frombuffer(view, np.uint8).any():
        return _put(self, data, position)
    with self.path.open("r+b") as file:
        end = max(position + len(view), os.fstat(file.fileno()).st_size)
        file.truncate(end)
    return len(view)


def markdown(figures: dict[str, Any]) -> str:
    """Return the table for the README."""
    rows = [
        [
            "`inspect`",
            f"{figures['inspect_seconds']:.2f} s",
            f"{figures['inspect_peak_rss_bytes'] / 2**20:.0f} MiB",
            f"{figures['inspect_read_bytes'] / 1e6:.1f} MB",
        ],
        [
            "`reshard --tp 8 --pp 4`",
            f"{figures['reshard_seconds']:.1f} s",
            f"{figures['reshard_peak_rss_bytes'] / 2**20:.0f} MiB",
            f"of {figures['allowed_rss_bytes'] / 2**20:.0f} MiB allowed",
        ],
    ]
    return f"{figures['bytes'] / 1e9:.1f} GB:\n\n{table(['command', 'time', 'peak RSS', ''], rows)}"


if __name__ == "__main__":
    main()
