"""``nemoalign inspect --check``: is this checkpoint whole, and is every byte what was once written?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.archive.files import Container, open_container
from nemoalign.archive.store import TensorStore
from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.pieces import Piece, Reading, count_not_finite, pieces_of, read_piece
from nemoalign.checkpoint.sources.nemo import CONFIG_NAME, MANIFEST_NAME
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.sources.stores import JoinedStore
from nemoalign.checkpoint.targets.writing import REPORT_NAME, check_copies
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import ContentError, NemoAlignError, SourceError
from nemoalign.log import Reporter

_MARKS = (
    CONFIG_NAME,
    "config.json",
    "adapter_config.json",
    "metadata.json",
    "weights",
    "checkpoints",
)


@dataclass
class Findings:
    """What a check saw: amounts of work, and problems by file and tensor."""

    bytes: int = 0
    tensors: int = 0
    """Tensors, or chunks of them, whose bytes were read one by one."""
    sums: int = 0
    summed_tensors: int = 0
    """Of those, the ones whose sum is stored somewhere."""
    manifest_sums: int = 0
    shared: int = 0
    not_finite: dict[str, int] = field(default_factory=dict[str, int])
    problems: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def problem(self, text: str, file: str = "", tensor: str = "") -> None:
        """Note one problem."""
        self.problems.append({"file": file, "tensor": tensor, "problem": text})


def check(path: Path | str, reporter: Reporter) -> dict[str, Any]:
    """Return what was checked, how many bytes were read, and every problem found.

    Compares the CRC-32 of every record with the ones its file and our manifest state, shapes with
    the configuration, tensors that several ranks hold with each other, and copies of tied tensors.

    Raises:
        SourceError: when there is no checkpoint at all.
    """
    path = Path(path)
    began = time.perf_counter()
    findings = Findings()
    source = _open(path, findings)
    container = source.container if source else None
    container = container or _container(source.path if source else path, findings)
    if container is not None:
        _check_sums(container, findings, reporter)
    if source is not None:
        _check_values(source, findings, reporter)
    recorded = [n for n in (MANIFEST_NAME, REPORT_NAME) if container and n in container.members]
    return {
        "path": str(path),
        "what": source.describe() if source else None,
        "intact": not findings.problems,
        "tensors": sum(len(store.tensors) for store in _stores(source)) if source else None,
        "bytes": findings.bytes,
        "sums": findings.sums,
        "weights_have_sums": findings.summed_tensors > 0,
        "manifest": recorded[0] if recorded and findings.manifest_sums else None,
        "manifest_sums": findings.manifest_sums,
        "shared_tensors": findings.shared,
        "not_finite": findings.not_finite,
        "warnings": list(source.warnings) if source else [],
        "problems": findings.problems,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _open(path: Path, findings: Findings) -> Source | VitSource | None:
    """Open a source; one that is a checkpoint but damaged is a finding, not an error."""
    try:
        return open_checkpoint(path)
    except (SourceError, ContentError) as error:
        if not _is_checkpoint(path):
            raise
        findings.problem(str(error))
    return None


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).exists() for name in _MARKS) or any(path.glob("*.nemo"))
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(262)
    return start.startswith((b"PK\x03\x04", b"\x1f\x8b")) or start.endswith(b"ustar")


def _container(path: Path, findings: Findings) -> Container | None:
    try:
        return open_container(path)
    except SourceError as error:
        if not findings.problems:
            findings.problem(str(error))
    return None


def _check_sums(container: Container, findings: Findings, reporter: Reporter) -> None:
    """Read every byte of weights once, on two cores, and compare the sums that are stated."""
    pieces: list[Piece] = []
    try:
        pieces.extend(pieces_of(container))
    except (SourceError, ContentError) as error:
        if str(error) not in [found["problem"] for found in findings.problems]:
            findings.problem(str(error))
    total = sum(piece.region.size for piece in pieces)
    with (
        reporter.progress(f"Checking {container.path.name}", total, "bytes") as bar,
        ThreadPoolExecutor(2) as workers,
    ):
        for reading in workers.map(read_piece, pieces):
            _compare(reading, findings)
            bar.advance(reading.piece.region.size)


def _compare(reading: Reading, findings: Findings) -> None:
    piece = reading.piece
    is_summed = piece.crc is not None or piece.manifest is not None
    findings.tensors += piece.dtype is not None
    findings.summed_tensors += piece.dtype is not None and is_summed
    findings.bytes += piece.region.size
    findings.sums += piece.crc is not None
    findings.manifest_sums += piece.manifest is not None
    if reading.not_finite:
        so_far = findings.not_finite.get(piece.what, 0)
        findings.not_finite[piece.what] = so_far + reading.not_finite
    for stated, by in ((piece.crc, "its record"), (piece.manifest, "the manifest")):
        if stated is not None and stated != reading.crc:
            findings.problem(
                f"bytes have changed: their CRC-32 is {reading.crc:08x}, {by} states {stated:08x}",
                piece.file,
                piece.what,
            )
            return


def _check_values(source: Source | VitSource, findings: Findings, reporter: Reporter) -> None:
    """Compare what is stored more than once; read what no sum has covered."""
    for store, name in chain.from_iterable(_worth_reading(s, findings) for s in _stores(source)):
        try:
            array = store.read(name)
        except NemoAlignError as error:
            findings.problem(str(error), tensor=name)
            continue
        if not findings.tensors:
            findings.bytes += array.nbytes
            wrong = count_not_finite(np.ascontiguousarray(array), store.tensors[name].dtype)
            findings.not_finite |= {name: wrong} if wrong else {}
    if isinstance(source, Source):
        _check_copies(source, findings)
    for name, count in findings.not_finite.items():
        reporter.warn(f'"{name}" has {count} values that are NaN or infinite.')


def _check_copies(source: Source, findings: Findings) -> None:
    try:
        check_copies(source)
    except NemoAlignError as error:
        findings.problem(str(error))
    findings.shared += len(source.copies.tensors)


def _stores(source: Source | VitSource) -> list[TensorStore]:
    return [source.weights, *([source.adapter.weights] if source.adapter else [])]


def _worth_reading(store: TensorStore, findings: Findings) -> Iterator[tuple[TensorStore, str]]:
    replicated = store.replicated() if isinstance(store, JoinedStore) else []
    findings.shared += len(replicated)
    for name in replicated if findings.tensors else store.tensors:
        yield store, name
