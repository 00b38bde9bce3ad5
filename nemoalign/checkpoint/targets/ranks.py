"""Write a ``.nemo`` as one torch file per rank, the layout that NeMo's older readers know.

A stage's files are written side by side, each tensor cut for all of them at once, so that a source
is read once whatever the number of ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import open_container
from nemoalign.archive.store import TensorInfo
from nemoalign.archive.tar import TarWriter
from nemoalign.archive.torch_file import TorchFile
from nemoalign.archive.torch_write import TorchWriter, torch_file_size
from nemoalign.checkpoint.sources.layouts import WEIGHTS_FILE
from nemoalign.checkpoint.sources.nemo import MANIFEST_NAME, open_nemo
from nemoalign.checkpoint.sources.source import EMBEDDING, Source
from nemoalign.checkpoint.sources.stores import JoinedStore
from nemoalign.checkpoint.targets.cut import Cut
from nemoalign.checkpoint.targets.nemo_members import settings_for, write_members
from nemoalign.checkpoint.targets.shards import Shards, all_tensors
from nemoalign.checkpoint.targets.writing import (
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
from nemoalign.weights.spelling import Spelling

TensorId = tuple[str, str]
"""A rank's file and the key of a tensor in it."""


@dataclass
class _Job:
    """What is being written, and what was."""

    shards: Shards
    cut: Cut
    spelling: Spelling
    names: list[str]
    tied: bool
    account: Account
    buffers: Mapping[str, tuple[Array, str]]
    """What every file repeats beside its tensors, by key."""
    sums: dict[TensorId, int] = field(default_factory=dict[TensorId, int])
    targets: dict[str, dict[str, tuple[int, ...]]] = field(
        default_factory=dict[str, dict[str, tuple[int, ...]]]
    )

    def keys(self, stage: int) -> list[tuple[str, tuple[str, ...]]]:
        """Return the tensors of a stage in order, each with its keys there."""
        first = self.cut.stages[stage].start
        held = [name for name in self.names if self.cut.stage_of(name) == stage]
        keys = [(name, self.spelling.keys(name, first)) for name in held]
        if self.tied and stage > 0 and stage == self.cut.pp - 1:
            keys.append((EMBEDDING, (self.spelling.tied_copy,)))
        return keys

    def infos(self, stage: int) -> dict[str, TensorInfo]:
        """Return what each rank's file of a stage holds."""
        infos: dict[str, TensorInfo] = {}
        for name, keys in self.keys(stage):
            info = self.shards.shard_info(name)
            rows = info.shape[0] // len(keys)
            infos |= dict.fromkeys(keys, TensorInfo((rows, *info.shape[1:]), info.dtype))
        repeated = {key: TensorInfo(a.shape, kind) for key, (a, kind) in self.buffers.items()}
        return infos | repeated


_Shard = tuple[str, tuple[str, ...], int, Array]
"""A tensor's name, its keys in the file, the rank, and what that rank holds of it."""


def write_ranks(
    source: Source, target: Path, cut: Cut, spelling: Spelling, reporter: Reporter, verify: str
) -> dict[str, Any]:
    """Write ``source`` for the ranks of ``cut`` and return the report, also kept beside the file.

    Raises:
        ContentError: when the source contradicts itself.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    options = WriteOptions(verify=verify)
    check_copies(source)
    tensors = source.weights.tensors
    tied = source.arch.share_embeddings_and_output_weights and EMBEDDING in tensors
    buffers = _rotary_buffers(source)
    account = Account([*tensors, *buffers])
    names = cut.in_order(tensors)
    job = _Job(Shards(source, cut.tp), cut, spelling, names, tied, account, buffers)
    total = sum(torch_file_size(job.infos(stage)) * cut.tp for stage in range(cut.pp))
    with staging(target, total) as stage:
        with reporter.progress(f"Writing {target.name}", total, "bytes") as bar:
            _write_archive(job, source, stage, options, bar.advance)
        account.close()
        if verify == "hash":
            with reporter.progress("Verifying", total, "bytes") as bar:
                _verify(job, stage, bar.advance)
        size = stage.stat().st_size
    report = report_of(source, target, options, began)
    report |= {"bytes": size, "tensors": account.rows}
    write_report(target.with_name(f"{target.name}.{REPORT_NAME}"), report)
    return report


def member_name(cut: Cut, tp_rank: int, pp_rank: int) -> str:
    """Return the file of a rank, by NeMo's rule: no folder for one rank, no stage for one stage."""
    if cut.tp == cut.pp == 1:
        return WEIGHTS_FILE
    if cut.pp == 1:
        return f"mp_rank_{tp_rank:02d}/{WEIGHTS_FILE}"
    return f"tp_rank_{tp_rank:02d}_pp_rank_{pp_rank:03d}/{WEIGHTS_FILE}"


def _write_archive(
    job: _Job, source: Source, stage: Path, options: WriteOptions, advance: Any
) -> None:
    with TarWriter(stage) as tar:
        write_members(
            tar, source, settings_for(source, options, job.cut, legacy=job.spelling.legacy)
        )
        for number in range(job.cut.pp):
            _write_stage(job, tar, number, advance)
        for name, targets in job.targets.items():
            kind = job.buffers[name][1] if name in job.buffers else job.shards.tensors[name].dtype
            job.account.record(name, targets, kind)
            files = (place.split(":", 1) for place in targets)
            job.account.rows[-1]["crc32"] = [hex_sum(job.sums[file, key]) for file, key in files]
        tar.add_bytes(MANIFEST_NAME, _manifest(job.sums))


def _write_stage(job: _Job, tar: TarWriter, number: int, advance: Any) -> None:
    """Write the files of all tensor-parallel ranks of one pipeline stage together."""
    infos = job.infos(number)
    size = torch_file_size(infos)
    members = [member_name(job.cut, rank, number) for rank in range(job.cut.tp)]
    writers: list[TorchWriter] = []
    for member in members:
        if "/" in member:
            tar.add_directory(member.rpartition("/")[0])
        writers.append(TorchWriter(tar.reserve(member, size).write, infos))
    for name, keys, rank, array in _ahead(_pieces(job, number)):
        member = members[rank]
        for key, part in zip(keys, np.split(array, len(keys)), strict=True):
            job.sums[member, key] = writers[rank].add(key, part)
            job.targets.setdefault(name, {})[f"{member}:{key}"] = part.shape
        advance(array.nbytes)
    for member, writer in zip(members, writers, strict=True):
        for key, (array, _) in job.buffers.items():
            job.sums[member, key] = writer.add(key, array)
            job.targets.setdefault(key, {})[f"{member}:{key}"] = array.shape
        writer.close()


def _pieces(job: _Job, stage: int) -> Iterator[_Shard]:
    """Yield every tensor of a stage, rank after rank."""
    for name, keys in job.keys(stage):
        for rank, array in enumerate(job.shards.shards(name)):
            yield name, keys, rank, np.ascontiguousarray(array)


def _ahead(shards: Iterator[_Shard]) -> Iterator[_Shard]:
    """Yield what ``shards`` does; the next one is cut on another core while one is written."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, shards, None)
        while (shard := coming.result()) is not None:
            coming = worker.submit(next, shards, None)
            yield shard


def _rotary_buffers(source: Source) -> dict[str, tuple[Array, str]]:
    """Return the rotary frequencies that older modules save, and ask for when they load, per rank."""
    files = source.weights.files() if isinstance(source.weights, JoinedStore) else []
    return {
        key.replace("model.module.", "model.", 1): (files[0].read(key), info.dtype)
        for key, info in (files[0].tensors.items() if files else ())
        if key.endswith("rotary_pos_emb.inv_freq")
    }


def _manifest(sums: Mapping[TensorId, int]) -> bytes:
    files: dict[str, dict[str, str]] = {}
    for (member, key), crc in sums.items():
        files.setdefault(member, {})[key] = hex_sum(crc)
    return json.dumps({"version": 1, "files": files}).encode()


def _verify(job: _Job, stage: Path, advance: Any) -> None:
    """Open the finished archive as any reader would, and compare every tensor with its sum."""
    container = open_container(stage)
    try:
        opened = all_tensors(open_nemo(container, "nemo"))
        members = {member for member, _ in job.sums}
        files = {name: TorchFile(container.member(name), f"{stage}: {name}") for name in members}
    except NemoAlignError as error:
        raise VerificationError(f"What was written does not open: {error}") from error
    found = {(name, key) for name, file in files.items() for key in file.tensors}
    if found != job.sums.keys() or dict(opened.tensors) != dict(job.shards.tensors):
        raise VerificationError("What was written has other tensors than were given to it.")
    verify_written(job.sums, lambda place: files[place[0]].read(place[1]), advance)
