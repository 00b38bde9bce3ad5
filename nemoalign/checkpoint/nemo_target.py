"""Write a ``.nemo`` in today's form: torch_dist, stacked layers, Transformer Engine's names."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemoalign.archive.dist import DistStore
from nemoalign.archive.dist_write import ChunkId, DistWriter
from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.files import open_container
from nemoalign.archive.tar import TarWriter
from nemoalign.checkpoint.adapter import MergedStore
from nemoalign.checkpoint.cut import WHOLE, Cut
from nemoalign.checkpoint.layouts import WEIGHTS_FOLDER
from nemoalign.checkpoint.nemo_members import settings_for, write_members
from nemoalign.checkpoint.nemo_source import MANIFEST_NAME, open_nemo
from nemoalign.checkpoint.shards import Shards
from nemoalign.checkpoint.source import EMBEDDING, HEAD, Source
from nemoalign.checkpoint.stores import MappedStore
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
from nemoalign.errors import NemoAlignError, VerificationError
from nemoalign.log import Reporter
from nemoalign.weights.names import stacked_key
from nemoalign.weights.ops import PadVocab
from nemoalign.weights.splits import GATED_ROWS
from nemoalign.weights.tensors import split_of


def write_nemo(
    source: Source, target: Path, options: WriteOptions, reporter: Reporter, cut: Cut = WHOLE
) -> dict[str, Any]:
    """Write ``source`` as a ``.nemo`` file and return the report, which is also kept beside it.

    Its chunks follow ``cut``, as its ranks would have written them; any number of ranks reads them.

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
            sums = _write_archive(source, stage, options, account, cut, bar.advance)
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
    source: Source, stage: Path, options: WriteOptions, account: Account, cut: Cut, advance: Any
) -> Mapping[ChunkId, int]:
    """Write all members and return the checksum of every chunk."""
    with TarWriter(stage) as tar:
        write_members(tar, source, settings_for(source, options, cut))
        with DistWriter(tar, f"{WEIGHTS_FOLDER}/") as writer:
            shards = Shards(source, cut.tp)
            for name in cut.in_order(source.weights.tensors):
                _write_tensor(writer, source, name, options, account, shards)
                advance(account.rows[-1].pop("bytes"))
        tar.add_bytes(MANIFEST_NAME, _manifest(writer.checksums))
    return writer.checksums


def _write_tensor(
    writer: DistWriter,
    source: Source,
    name: str,
    options: WriteOptions,
    account: Account,
    shards: Shards,
) -> None:
    info = shards.tensors[name]
    written = options.written_dtype(info.dtype)
    key, at = stacked_key(name)
    stack = (source.arch.num_layers, source.arch.num_moe_experts or 0)[: len(at)]
    size = 0
    for offsets, part in _chunks(source, name, shards):
        array = options.cast(part, info.dtype, name)
        size += array.nbytes
        chunk = array.reshape((1,) * len(at) + array.shape)
        writer.add(key, (*stack, *info.shape), (*at, *offsets), chunk, written)
    account.record(name, {key: info.shape}, written)
    account.rows[-1] |= {"at": list(at), "bytes": size}
    if isinstance(source.weights, MappedStore):
        account.rows[-1]["hf"] = list(source.weights.hf_names(name))


def _chunks(source: Source, name: str, shards: Shards) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield offsets and values of the chunks that ranks would write; one rank copies nothing."""
    if shards.tp > 1:
        for piece in shards.pieces(name):
            yield piece.offsets, piece.array
        return
    row = 0
    for run in runs_of(source, name):
        yield (row, *(0,) * (run.ndim - 1)), run
        row += len(run)


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
        container = open_container(stage)
        open_nemo(container, "nemo")
        store = DistStore(container.under(WEIGHTS_FOLDER))
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
    depths = {key: len(row["at"]) for row in rows for key in row["target"]}
    by_tensor: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (key, offsets), crc in sums.items():
        by_tensor.setdefault((key, offsets[: depths[key]]), []).append(hex_sum(crc))
    for row in rows:
        (key,) = row["target"]
        row["crc32"] = by_tensor[key, tuple(row["at"])]
    return rows
