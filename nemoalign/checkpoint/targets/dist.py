"""Write weights as one torch_dist directory of any sink: layers stacked, keys with any prefix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemoalign.archive.dist import DistStore
from nemoalign.archive.dist_write import ChunkId, DistWriter
from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.sink import Sink
from nemoalign.checkpoint.settings.adapter import MergedStore
from nemoalign.checkpoint.sources.source import EMBEDDING, HEAD, Source
from nemoalign.checkpoint.sources.stores import MappedStore
from nemoalign.checkpoint.targets.cut import WHOLE, Cut
from nemoalign.checkpoint.targets.optimizer import STATE, OptimizerState
from nemoalign.checkpoint.targets.shards import Shards
from nemoalign.checkpoint.targets.writing import Account, WriteOptions, hex_sum, verify_written
from nemoalign.errors import VerificationError
from nemoalign.weights.names import PREFIX, stacked_key
from nemoalign.weights.ops import PadVocab
from nemoalign.weights.spelling import spelled
from nemoalign.weights.splits import GATED_ROWS
from nemoalign.weights.tensors import split_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is written and how: the chunks follow ``cut``, the keys begin with ``prefix``.

    ``slot`` goes before both names and keys when ``source`` is a part of the optimizer's state.
    """

    source: Source
    options: WriteOptions
    account: Account
    cut: Cut = WHOLE
    prefix: str = PREFIX
    slot: str = ""
    optimizer: OptimizerState | None = None

    def parts(self) -> Sequence[Job]:
        """Return the job for the weights, and one for every slot of the optimizer."""
        slots = self.optimizer.slots if self.optimizer else {}
        return [self] + [
            replace(self, source=replace(self.source, weights=store), slot=f"{STATE}{slot}.")
            for slot, store in slots.items()
        ]


def write_weights(sink: Sink, folder: str, job: Job, advance: Any) -> Mapping[ChunkId, int]:
    """Write all tensors into a folder of ``sink`` and return the checksum of every chunk."""
    common = job.optimizer.common if job.optimizer else None
    with DistWriter(sink, f"{folder}/", common=common) as writer:
        for part in job.parts():
            shards = Shards(part.source, part.cut.tp)
            for name in part.cut.in_order(shards.tensors):
                _write_tensor(writer, name, part, shards)
                advance(job.account.rows[-1].pop("bytes"))
    return writer.checksums


def _write_tensor(writer: DistWriter, name: str, job: Job, shards: Shards) -> None:
    source, options = job.source, job.options
    info = shards.tensors[name]
    written = options.written_dtype(info.dtype)
    stacked, at = stacked_key(spelled(name, source.arch))
    key = job.slot + job.prefix + stacked.removeprefix(PREFIX)
    stack = (source.arch.num_layers, source.arch.num_moe_experts or 0)[: len(at)]
    size = 0
    for offsets, part in _chunks(source, name, shards):
        array = options.cast(part, info.dtype, name)
        size += array.nbytes
        chunk = array.reshape((1,) * len(at) + array.shape)
        writer.add(key, (*stack, *info.shape), (*at, *offsets), chunk, written)
    job.account.record(job.slot + name, {key: info.shape}, written)
    job.account.rows[-1] |= {"at": list(at), "bytes": size}
    if isinstance(source.weights, MappedStore):
        job.account.rows[-1]["hf"] = list(source.weights.hf_names(name))


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


def total_bytes(source: Source, options: WriteOptions) -> int:
    """Return the size of all weights as they will be written."""
    return sum(
        info.size * dtype(options.written_dtype(info.dtype)).itemsize
        for info in source.weights.tensors.values()
    )


def manifest_of(sums: Mapping[ChunkId, int]) -> bytes:
    """Return the member that states the checksum of every chunk, for ``inspect --check``."""
    chunks: dict[str, list[dict[str, Any]]] = {}
    for (key, offsets), crc in sums.items():
        chunks.setdefault(key, []).append({"offsets": list(offsets), "crc32": hex_sum(crc)})
    return json.dumps({"version": 1, "chunks": chunks}).encode()


def verify_chunks(store: DistStore, sums: Mapping[ChunkId, int], advance: Any) -> None:
    """Compare every chunk of a finished directory with its sum.

    Raises:
        VerificationError: when one differs, or is not what was written.
    """
    shapes = {(key, at): shape for key in store.tensors for at, shape in store.chunks(key)}
    if shapes.keys() != sums.keys():
        raise VerificationError("What was written has other chunks than were given to it.")

    def read(chunk: ChunkId) -> Array:
        key, offsets = chunk
        sizes = shapes[chunk]
        index = tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
        return store.read(key, index)

    verify_written(sums, read, advance)


def with_sums(rows: list[dict[str, Any]], sums: Mapping[ChunkId, int]) -> list[dict[str, Any]]:
    """Return the rows of a report with the checksums of the chunks each tensor became."""
    depths = {key: len(row["at"]) for row in rows for key in row["target"]}
    by_tensor: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (key, offsets), crc in sums.items():
        by_tensor.setdefault((key, offsets[: depths[key]]), []).append(hex_sum(crc))
    for row in rows:
        (key,) = row["target"]
        row["crc32"] = by_tensor[key, tuple(row["at"])]
    return rows
