"""Write a ViT as NeMo does: one torch file, or one for every tensor-parallel rank, inside a tar.

The files of all ranks are written side by side, each tensor read once and cut for all of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import open_container
from nemoalign.archive.store import TensorInfo
from nemoalign.archive.tar import TarWriter
from nemoalign.archive.torch_file import TorchFile
from nemoalign.archive.torch_write import TorchWriter, torch_file_size
from nemoalign.checkpoint.settings.nemo_config import PRECISIONS
from nemoalign.checkpoint.settings.values import section
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES
from nemoalign.checkpoint.sources.nemo import CONFIG_NAME, MANIFEST_NAME
from nemoalign.checkpoint.targets.cut import Cut
from nemoalign.checkpoint.targets.ranks import member_name
from nemoalign.checkpoint.targets.writing import (
    REPORT_NAME,
    Account,
    WriteOptions,
    hex_sum,
    report_of,
    staging,
    verify_written,
    write_report,
)
from nemoalign.checkpoint.vit.nemo_config import vit_provenance
from nemoalign.checkpoint.vit.ranks import open_vit
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ConfigError, NemoAlignError, VerificationError
from nemoalign.log import Reporter
from nemoalign.parallel.layout import choices, divisors
from nemoalign.weights.vit_tensors import vit_split

TensorId = tuple[str, str]
"""A rank's file and the key of a tensor in it."""


@dataclass
class _Job:
    """What is being written, how, and the checksum of everything that was."""

    source: VitSource
    options: WriteOptions
    tp: int
    account: Account
    sums: dict[TensorId, int] = field(default_factory=dict[TensorId, int])

    @property
    def members(self) -> list[str]:
        """The file of every rank."""
        return [member_name(Cut(tp=self.tp), rank, 0) for rank in range(self.tp)]

    def rank_infos(self) -> dict[str, TensorInfo]:
        """Return what each rank's file holds, by key."""
        infos: dict[str, TensorInfo] = {}
        for name, info in self.source.weights.tensors.items():
            shape = vit_split(name, self.source.arch).shard_shape(info.shape, self.tp)
            infos[f"model.{name}"] = TensorInfo(shape, self.options.written_dtype(info.dtype))
        return infos


def write_vit_nemo(
    source: VitSource,
    target: Path,
    options: WriteOptions,
    reporter: Reporter,
    *,
    tp: int = 1,
    notes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Write ``source`` as a ``.nemo`` for ``tp`` ranks; return the report, kept beside it too.

    ``notes`` are what the report says of how the source's form was changed.

    Raises:
        ConfigError: when the model cannot be cut for so many ranks; the sizes that fit are named.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    check_vit_tp(source.arch, tp)
    job = _Job(source, options, tp, Account(list(source.weights.tensors)))
    total = tp * torch_file_size(job.rank_infos())
    with staging(target, total) as stage:
        with reporter.progress(f"Writing {target.name}", total, "bytes") as bar:
            _write_archive(job, stage, bar.advance)
        job.account.close()
        if options.verify == "hash":
            with reporter.progress("Verifying", total, "bytes") as bar:
                _verify(job, stage, bar.advance)
        size = stage.stat().st_size
    report = report_of(source, target, options, began)
    report |= {"bytes": size, "notes": list(notes), "tensors": job.account.rows}
    write_report(target.with_name(f"{target.name}.{REPORT_NAME}"), report)
    return report


def check_vit_tp(arch: VitArchitecture, tp: int) -> None:
    """Check that heads and feed-forward width can be shared out; ConfigError names what fits."""
    common = math.gcd(arch.num_attention_heads, arch.ffn_hidden_size)
    if tp < 1 or common % tp:
        raise ConfigError(
            f"{arch.num_attention_heads} heads and an MLP of {arch.ffn_hidden_size} cannot be "
            f"split over --tp {tp}; use --tp {choices(divisors(common))}."
        )


def _write_archive(job: _Job, stage: Path, advance: Any) -> None:
    source = job.source
    infos = job.rank_infos()
    size = torch_file_size(infos)
    with TarWriter(stage) as tar:
        tar.add_bytes(CONFIG_NAME, dump_checkpoint_config(_config(job)).encode())
        if source.files:
            tar.add_directory("hf")
        for name, region in source.files.items():
            tar.add_bytes(name, region.read(MAX_FILE_BYTES))
        writers: dict[str, TorchWriter] = {}
        for member in job.members:
            if "/" in member:
                tar.add_directory(member.rpartition("/")[0])
            writers[member] = TorchWriter(tar.reserve(member, size).write, infos)
        for name in source.weights.tensors:
            _write_tensor(job, writers, name, advance)
        for writer in writers.values():
            writer.close()
        tar.add_bytes(MANIFEST_NAME, _manifest(job.sums))


def _write_tensor(job: _Job, writers: Mapping[str, TorchWriter], name: str, advance: Any) -> None:
    """Write every rank's part of one tensor."""
    store, key = job.source.weights, f"model.{name}"
    kind = store.tensors[name].dtype
    whole = job.options.cast(store.read(name), kind, name)
    split = vit_split(name, job.source.arch)
    shards = [whole] * job.tp if split.dim is None else split.split(whole, job.tp)
    for (member, writer), shard in zip(writers.items(), shards, strict=True):
        job.sums[member, key] = writer.add(key, shard)
        advance(shard.nbytes)
    written = {f"{member}:{key}": shards[0].shape for member in writers}
    job.account.record(name, written, job.options.written_dtype(kind))
    sums = [hex_sum(job.sums[member, key]) for member in writers]
    job.account.rows[-1]["crc32"] = sums


def _config(job: _Job) -> dict[str, Any]:
    """Return model_config.yaml: the source's own, unknown fields included, for this layout."""
    source = job.source
    main = source.dtypes[0]
    written = job.options.written_dtype(main)
    config = dict(source.stored_config)
    config["tensor_model_parallel_size"] = job.tp
    config["pipeline_model_parallel_size"] = 1
    config["virtual_pipeline_model_parallel_size"] = None
    if job.tp == 1 and config.get("sequence_parallel"):
        config["sequence_parallel"] = False
    if written != main or "precision" not in config:
        config["precision"] = PRECISIONS.get(written, 32)
    ours = vit_provenance(source.family) | {"dtype": written}
    return config | {"nemoalign": {**section(config, "nemoalign"), **ours}}


def _manifest(sums: Mapping[TensorId, int]) -> bytes:
    files: dict[str, dict[str, str]] = {}
    for (member, key), crc in sums.items():
        files.setdefault(member, {})[key] = hex_sum(crc)
    return json.dumps({"version": 1, "files": files}).encode()


def _verify(job: _Job, stage: Path, advance: Any) -> None:
    """Open the finished archive as any reader would, and compare every tensor with its sum."""
    container = open_container(stage)
    try:
        open_vit(container, "nemo")
        files = {n: TorchFile(container.member(n), f"{stage}: {n}") for n in job.members}
    except NemoAlignError as error:
        raise VerificationError(f"What was written does not open: {error}") from error
    if {(name, key) for name, file in files.items() for key in file.tensors} != job.sums.keys():
        raise VerificationError("What was written has other tensors than were given to it.")

    def read(place: TensorId) -> Array:
        return files[place[0]].read(place[1])

    verify_written(job.sums, read, advance)
