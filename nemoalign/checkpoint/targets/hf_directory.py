"""Write what any kind of model becomes in Hugging Face's form, verified, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import Container, open_container
from nemoalign.archive.safetensors import SafetensorsStore, SafetensorsWriter
from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.targets.writing import (
    REPORT_NAME,
    Account,
    WriteOptions,
    hex_sum,
    staging,
    verify_written,
    write_report,
)
from nemoalign.errors import NemoAlignError, VerificationError
from nemoalign.log import Reporter


@dataclass(frozen=True)
class Piece:
    """The Hugging Face tensors that one tensor of the source becomes, made when they are written."""

    source: str
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    make: Callable[[], tuple[Array, ...]]


@dataclass(frozen=True)
class Directory:
    """Everything a Hugging Face directory will hold, and how to check and report it."""

    tensors: list[str]
    """The names of the source's tensors; each must be written by exactly one piece."""
    pieces: list[Piece]
    files: Mapping[str, bytes]
    report: Callable[[], dict[str, Any]]
    """Makes the head of the report, once everything is written."""
    reopen: Callable[[Container], object]
    """Opens the finished directory as any reader would."""


def write_directory(
    directory: Directory, target: Path, options: WriteOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write the directory and return its report, which is also kept in it.

    Raises:
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    tensors = {
        name: TensorInfo(shape, options.written_dtype(piece.dtype))
        for piece in directory.pieces
        for name, shape in piece.shapes.items()
    }
    total = sum(info.size_bytes for info in tensors.values())
    account = Account(directory.tensors)
    with staging(target, total) as stage:
        with (
            reporter.progress(f"Writing {target.name}", total, "bytes") as bar,
            SafetensorsWriter(stage, tensors) as writer,
        ):
            for piece in directory.pieces:
                bar.advance(_write_piece(writer, piece, options, account))
        for name, content in directory.files.items():
            (stage / name).write_bytes(content)
        account.close()
        if options.verify != "none":
            with reporter.progress("Verifying", total, "bytes") as bar:
                _verify(stage, directory, writer.checksums, bar.advance)
        proof = options.proof(stage)
        report = directory.report() | proof
        report |= {"bytes": total, "tensors": _with_sums(account.rows, writer.checksums)}
        write_report(stage / REPORT_NAME, report)
    return report


def _write_piece(
    writer: SafetensorsWriter, piece: Piece, options: WriteOptions, account: Account
) -> int:
    """Write the tensors of one piece and return their bytes."""
    written = 0
    for name, part in zip(piece.shapes, piece.make(), strict=True):
        array = options.cast(part, piece.dtype, name)
        writer.write(name, array)
        written += array.nbytes
    account.record(piece.source, piece.shapes, options.written_dtype(piece.dtype))
    return written


def _verify(stage: Path, directory: Directory, sums: Mapping[str, int], advance: Any) -> None:
    """Open the finished directory as any reader would, and compare every tensor with its sum."""
    try:
        container = open_container(stage)
        directory.reopen(container)
        store = SafetensorsStore(container)
    except NemoAlignError as error:
        raise VerificationError(f"What was written does not open: {error}") from error
    verify_written(sums, store.read, advance)


def _with_sums(rows: list[dict[str, Any]], sums: Mapping[str, int]) -> list[dict[str, Any]]:
    for row in rows:
        row["crc32"] = [hex_sum(sums[name]) for name in row["target"]]
    return rows
