"""Write a ``.nemo`` in today's form: torch_dist, stacked layers, Transformer Engine's names."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nemoalign.archive.dist import DistStore
from nemoalign.archive.dist_write import ChunkId, DistWriter
from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.files import open_container
from nemoalign.archive.tar import TarWriter
from nemoalign.checkpoint.adapter import MergedStore
from nemoalign.checkpoint.layouts import WEIGHTS_FOLDER
from nemoalign.checkpoint.nemo_config import PRECISIONS, provenance
from nemoalign.checkpoint.nemo_source import CONFIG_NAME, MANIFEST_NAME, open_nemo
from nemoalign.checkpoint.source import EMBEDDING, HEAD, Source
from nemoalign.checkpoint.stores import MappedStore, PlacedStore
from nemoalign.checkpoint.vocabulary import MAX_FILE_BYTES, real_vocabulary
from nemoalign.checkpoint.writing import (
    REPORT_NAME,
    Account,
    WriteOptions,
    check_copies,
    hex_sum,
    report_of,
    staging,
    verify_written,
    write_report,
)
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.errors import NemoAlignError, VerificationError
from nemoalign.log import Reporter
from nemoalign.weights.names import stacked_key
from nemoalign.weights.ops import PadVocab
from nemoalign.weights.splits import GATED_ROWS
from nemoalign.weights.tensors import expected_shapes, split_of

_WHOLE_MODEL: Mapping[str, Any] = {
    "mcore_gpt": True,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
}
"""What a checkpoint says of its layout when every rank can read it."""


def write_nemo(
    source: Source, target: Path, options: WriteOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write ``source`` as a ``.nemo`` file and return the report, which is also kept beside it.

    Raises:
        ContentError: when the source contradicts itself.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    check_copies(source)
    account = Account(list(source.weights.tensors))
    total = _total_bytes(source, options)
    with staging(target, total) as stage:
        with reporter.progress(f"Writing {target.name}", total, "bytes") as bar:
            sums = _write_archive(source, stage, options, account, bar.advance)
        account.close()
        if options.verify == "hash":
            with reporter.progress("Verifying", total, "bytes") as bar:
                _verify(stage, sums, bar.advance)
        size = stage.stat().st_size
    report = report_of(source, target, options, began)
    report |= {"bytes": size, "tensors": _with_sums(account.rows, sums)}
    write_report(target.with_name(f"{target.name}.{REPORT_NAME}"), report)
    return report


def _write_archive(
    source: Source, stage: Path, options: WriteOptions, account: Account, advance: Any
) -> Mapping[ChunkId, int]:
    """Write all members and return the checksum of every chunk."""
    with TarWriter(stage) as tar:
        tar.add_bytes(CONFIG_NAME, dump_checkpoint_config(_config(source, options)).encode())
        if any("/" in name for name in source.files):
            tar.add_directory("hf")
        for name, region in source.files.items():
            tar.add_bytes(name, region.read(MAX_FILE_BYTES))
        with DistWriter(tar, f"{WEIGHTS_FOLDER}/") as writer:
            for name in expected_shapes(source.arch, 1):
                _write_tensor(writer, source, name, options, account)
                advance(account.rows[-1].pop("bytes"))
        tar.add_bytes(MANIFEST_NAME, _manifest(writer.checksums))
    return writer.checksums


def _write_tensor(
    writer: DistWriter, source: Source, name: str, options: WriteOptions, account: Account
) -> None:
    kind = source.weights.tensors[name].dtype
    runs = [options.cast(run, kind, name) for run in runs_of(source, name)]
    key, layer = stacked_key(name)
    shape = (sum(len(run) for run in runs), *runs[0].shape[1:])
    rest = (0,) * (len(shape) - 1)
    row = 0
    for run in runs:
        written = options.written_dtype(kind)
        if layer is None:
            writer.add(key, shape, (row, *rest), run, written)
        else:
            whole = (source.arch.num_layers, *shape)
            writer.add(key, whole, (layer, row, *rest), run[None], written)
        row += len(run)
    account.record(name, {key: shape}, options.written_dtype(kind))
    account.rows[-1] |= {"layer": layer, "bytes": sum(run.nbytes for run in runs)}
    if isinstance(source.weights, MappedStore):
        account.rows[-1]["hf"] = list(source.weights.hf_names(name))


def runs_of(source: Source, name: str) -> tuple[Array, ...]:
    """Return the arrays that, stacked along dim 0, are a tensor as a TP1 archive holds it.

    A gated fc1 comes as gate and up, as megatron-core writes it. The vocabulary's padding is made
    anew, of zeros, where the number of rows changes.
    """
    store, arch = source.weights, source.arch
    if isinstance(store, MappedStore):
        return store.read_runs(name)
    if name in (EMBEDDING, HEAD):
        table = store.read(name)
        if len(table) == arch.padded_vocab_size(source.vocab_size):
            return (table,)
        return PadVocab().runs([table[: source.vocab_size]], arch)
    if split_of(name, arch) == GATED_ROWS:
        half = store.tensors[name].shape[0] // 2
        if isinstance(store, MergedStore):
            merged = store.read(name)
            return merged[:half], merged[half:]
        return store.read(name, (slice(half),)), store.read(name, (slice(half, None),))
    return (store.read(name),)


def _config(source: Source, options: WriteOptions) -> dict[str, Any]:
    """Return model_config.yaml: the source's own, unknown fields included, for a whole model."""
    main = source.weights.tensors[EMBEDDING].dtype
    written = options.written_dtype(main)
    config = {**source.stored_config, **_WHOLE_MODEL}
    if config.get("sequence_parallel"):
        config["sequence_parallel"] = False
    if written != main or "precision" not in config:
        config["precision"] = PRECISIONS.get(written, 32)
    known = real_vocabulary(source.config, source.hf_config, source.files)
    ours = provenance(source.family, known) | {"dtype": written}
    return config | {"nemoalign": (config.get("nemoalign") or {}) | ours}


def _total_bytes(source: Source, options: WriteOptions) -> int:
    return sum(
        info.size * dtype(options.written_dtype(info.dtype)).itemsize
        for info in source.weights.tensors.values()
    )


def _manifest(sums: Mapping[ChunkId, int]) -> bytes:
    chunks: dict[str, list[dict[str, Any]]] = {}
    for (key, offsets), crc in sums.items():
        chunks.setdefault(key, []).append({"offsets": list(offsets), "crc32": hex_sum(crc)})
    return json.dumps({"version": 1, "chunks": chunks}).encode()


def _verify(stage: Path, sums: Mapping[ChunkId, int], advance: Any) -> None:
    """Open the finished archive as any reader would, and compare every chunk with its sum."""
    try:
        opened = open_nemo(open_container(stage), "nemo")
        store = cast("PlacedStore", opened.weights).place(EMBEDDING).store
        assert isinstance(store, DistStore), "the archive was written as torch_dist"
    except NemoAlignError as error:
        raise VerificationError(f"What was written does not open: {error}") from error
    shapes = {(key, at): shape for key in store.tensors for at, shape in store.chunks(key)}
    if shapes.keys() != sums.keys():
        raise VerificationError("What was written has other chunks than were given to it.")

    def read(chunk: ChunkId) -> Array:
        key, offsets = chunk
        sizes = shapes[chunk]
        index = tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
        return store.read(key, index)

    verify_written(sums, read, advance)


def _with_sums(rows: list[dict[str, Any]], sums: Mapping[ChunkId, int]) -> list[dict[str, Any]]:
    by_tensor: dict[tuple[str, int | None], list[str]] = {}
    for (key, offsets), crc in sums.items():
        stacked = key.startswith("model.decoder.layers.")
        by_tensor.setdefault((key, offsets[0] if stacked else None), []).append(hex_sum(crc))
    for row in rows:
        (key,) = row["target"]
        row["crc32"] = by_tensor[key, row["layer"]]
    return rows
