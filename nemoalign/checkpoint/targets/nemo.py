"""Write a ``.nemo`` in today's form: torch_dist, stacked layers, Transformer Engine's names."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemoalign.archive.dist import DistStore
from nemoalign.archive.dist_write import ChunkId
from nemoalign.archive.files import open_container
from nemoalign.archive.tar import TarWriter
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES
from nemoalign.checkpoint.sources.layouts import WEIGHTS_FOLDER
from nemoalign.checkpoint.sources.nemo import MANIFEST_NAME, open_nemo
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.targets.cut import WHOLE, Cut
from nemoalign.checkpoint.targets.dist import (
    Job,
    manifest_of,
    total_bytes,
    verify_chunks,
    with_sums,
    write_weights,
)
from nemoalign.checkpoint.targets.nemo_members import settings_for, write_members
from nemoalign.checkpoint.targets.optimizer import OptimizerState
from nemoalign.checkpoint.targets.writing import (
    REPORT_NAME,
    Account,
    WriteOptions,
    check_copies,
    report_of,
    staging,
    write_report,
)
from nemoalign.errors import NemoAlignError, VerificationError
from nemoalign.log import Reporter


def write_nemo(
    source: Source,
    target: Path,
    options: WriteOptions,
    reporter: Reporter,
    cut: Cut = WHOLE,
    optimizer: OptimizerState | None = None,
) -> dict[str, Any]:
    """Write ``source`` as a ``.nemo`` file and return the report, which is also kept beside it.

    Its chunks follow ``cut``, as its ranks would have written them; any number of ranks reads them.

    Raises:
        ContentError: when the source contradicts itself.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    check_copies(source)
    account = Account([*source.weights.tensors, *(optimizer.names if optimizer else ())])
    job = Job(source=source, options=options, account=account, cut=cut, optimizer=optimizer)
    total = sum(total_bytes(part.source, options) for part in job.parts())
    with staging(target, total) as stage:
        with reporter.progress(f"Writing {target.name}", total, "bytes") as bar:
            sums = _write_archive(job, stage, bar.advance)
        account.close()
        if options.verify != "none":
            with reporter.progress("Verifying", total, "bytes") as bar:
                _verify(stage, sums, bar.advance)
        proof = options.proof(stage)
        size = stage.stat().st_size
    report = report_of(source, target, options, began) | proof
    report |= {"bytes": size, "tensors": with_sums(account.rows, sums)}
    write_report(target.with_name(f"{target.name}.{REPORT_NAME}"), report)
    return report


def _write_archive(job: Job, stage: Path, advance: Any) -> Mapping[ChunkId, int]:
    """Write all members and return the checksum of every chunk."""
    with TarWriter(stage) as tar:
        write_members(tar, job.source, settings_for(job.source, job.options, job.cut))
        for name, region in (job.optimizer.files if job.optimizer else {}).items():
            tar.add_bytes(name, region.read(MAX_FILE_BYTES))
        sums = write_weights(tar, WEIGHTS_FOLDER, job, advance)
        tar.add_bytes(MANIFEST_NAME, manifest_of(sums))
    return sums


def _verify(stage: Path, sums: Mapping[ChunkId, int], advance: Any) -> None:
    """Open the finished archive as any reader would, and compare every chunk with its sum."""
    try:
        container = open_container(stage)
        open_nemo(container, "nemo")
        store = DistStore(container.under(WEIGHTS_FOLDER))
    except NemoAlignError as error:
        raise VerificationError(f"What was written does not open: {error}") from error
    verify_chunks(store, sums, advance)
