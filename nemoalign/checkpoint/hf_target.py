"""Write a Hugging Face model directory: safetensors, config.json and the tokenizer's files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import open_container
from nemoalign.archive.safetensors import SafetensorsStore, SafetensorsWriter
from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.adapter import MergedStore
from nemoalign.checkpoint.hf_config import check_exportable, hf_files
from nemoalign.checkpoint.hf_source import open_hf
from nemoalign.checkpoint.source import Source
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
from nemoalign.weights.rules import TensorPlan, tensor_plans


def write_hf(
    source: Source, target: Path, options: WriteOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write ``source`` as a Hugging Face directory and return the report, which is also kept in it.

    Raises:
        ContentError: when Hugging Face cannot represent the model.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    check_exportable(source)
    check_copies(source)
    files, notes = hf_files(source, options)
    for note in notes:
        reporter.warn(note)
    plans = tensor_plans(source.family, source.arch)
    tensors = _declared(source, plans, options)
    total = sum(info.size_bytes for info in tensors.values())
    account = Account(list(source.weights.tensors))
    with staging(target, total) as stage:
        with (
            reporter.progress(f"Writing {target.name}", total, "bytes") as bar,
            SafetensorsWriter(stage, tensors) as writer,
        ):
            for plan in plans:
                bar.advance(_write_tensor(writer, source, plan, options, account))
        for name, content in files.items():
            (stage / name).write_bytes(content)
        account.close()
        if options.verify == "hash":
            with reporter.progress("Verifying", total, "bytes") as bar:
                _verify(stage, writer.checksums, bar.advance)
        report = report_of(source, target, options, began)
        report |= {"bytes": total, "tensors": _with_sums(account.rows, writer.checksums)}
        write_report(stage / REPORT_NAME, report)
    return report


def _declared(
    source: Source, plans: list[TensorPlan], options: WriteOptions
) -> dict[str, TensorInfo]:
    """Return name, shape and element type of every tensor that will be written."""
    declared: dict[str, TensorInfo] = {}
    for plan in plans:
        info = source.weights.tensors[plan.name]
        shapes = plan.op.hf_shapes(info.shape, source.arch, source.vocab_size)
        written = options.written_dtype(info.dtype)
        for name, shape in zip(plan.hf_names, shapes, strict=True):
            declared[name] = TensorInfo(shape, written)
    return declared


def _write_tensor(
    writer: SafetensorsWriter,
    source: Source,
    plan: TensorPlan,
    options: WriteOptions,
    account: Account,
) -> int:
    """Write the Hugging Face tensors of one canonical tensor and return their bytes."""
    dtype = source.weights.tensors[plan.name].dtype
    parts = _parts(source, plan)
    written = 0
    for name, part in zip(plan.hf_names, parts, strict=True):
        array = options.cast(part, dtype, name)
        writer.write(name, array)
        written += array.nbytes
    shapes = {name: part.shape for name, part in zip(plan.hf_names, parts, strict=True)}
    account.record(plan.name, shapes, options.written_dtype(dtype))
    return written


def _parts(source: Source, plan: TensorPlan) -> tuple[Array, ...]:
    """Return the Hugging Face tensors inside a canonical one, each read on its own where it can be."""
    store, arch, vocab_size = source.weights, source.arch, source.vocab_size
    if not plan.op.keeps_rows or isinstance(store, MergedStore):
        return plan.op.to_hf(store.read(plan.name), arch, vocab_size)
    parts: list[Array] = []
    row = 0
    for shape in plan.op.hf_shapes(store.tensors[plan.name].shape, arch, vocab_size):
        parts.append(store.read(plan.name, (slice(row, row + shape[0]),)))
        row += shape[0]
    return tuple(parts)


def _verify(stage: Path, sums: Mapping[str, int], advance: Any) -> None:
    """Open the finished directory as any reader would, and compare every tensor with its sum."""
    try:
        container = open_container(stage)
        open_hf(container)
        store = SafetensorsStore(container)
    except NemoAlignError as error:
        raise VerificationError(f"What was written does not open: {error}") from error
    verify_written(sums, store.read, advance)


def _with_sums(rows: list[dict[str, Any]], sums: Mapping[str, int]) -> list[dict[str, Any]]:
    for row in rows:
        row["crc32"] = [hex_sum(sums[name]) for name in row["target"]]
    return rows
