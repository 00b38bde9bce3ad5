"""Write a LoRA adapter alone as NeMo keeps it: a ``.nemo`` of one torch file, adapter tensors only.

``NLPSaveRestoreConnector`` writes ``model_weights.ckpt`` for TP1 PP1 with keys ``model.decoder...``
and the base model's configuration, in which ``restore_from_path`` names the base.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemoalign.archive.files import open_container
from nemoalign.archive.store import checksum_array
from nemoalign.archive.tar import TarWriter
from nemoalign.archive.torch_file import TorchFile
from nemoalign.archive.torch_write import write_torch_file
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES
from nemoalign.checkpoint.sources.nemo import CONFIG_NAME
from nemoalign.checkpoint.sources.source import Source
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
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.errors import VerificationError
from nemoalign.log import Reporter

WEIGHTS_FILE = "model_weights.ckpt"
PREFIX = "model."


def write_adapter(
    source: Source, target: Path, options: WriteOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write the adapter of ``source`` as a ``.nemo`` file and return the report kept beside it.

    Raises:
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    assert source.adapter is not None, "the caller has an adapter"
    began = time.perf_counter()
    store = source.adapter.weights
    account = Account(list(store.tensors))
    tensors = {}
    for name, info in store.tensors.items():
        kind = options.written_dtype(info.dtype)
        tensors[PREFIX + name] = (options.cast(store.read(name), info.dtype, name), kind)
        account.record(name, {PREFIX + name: info.shape}, kind)
        account.rows[-1]["crc32"] = [hex_sum(checksum_array(tensors[PREFIX + name][0]))]
    account.close()
    config = source.stored_config | {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    }
    total = sum(array.nbytes for array, _ in tensors.values())
    with staging(target, total) as stage:
        with TarWriter(stage) as tar:
            tar.add_bytes(CONFIG_NAME, dump_checkpoint_config(config).encode())
            for name, region in source.files.items():
                tar.add_bytes(name, region.read(MAX_FILE_BYTES))
            with tar.member(WEIGHTS_FILE) as member:
                write_torch_file(member.write, tensors)
        if options.verify != "none":
            sums = {name: checksum_array(array) for name, (array, _) in tensors.items()}
            with reporter.progress("Verifying", total, "bytes") as bar:
                _verify(stage, sums, bar.advance)
        size = stage.stat().st_size
    report = report_of(source, target, options, began)
    report |= {"bytes": size, "tensors": account.rows}
    write_report(target.with_name(f"{target.name}.{REPORT_NAME}"), report)
    return report


def _verify(stage: Path, sums: dict[str, int], advance: Callable[[int], None]) -> None:
    """Read every tensor back from the finished file and compare it with its sum."""
    container = open_container(stage)
    store = TorchFile(container.members[WEIGHTS_FILE], str(stage))
    if store.tensors.keys() != sums.keys():
        raise VerificationError("What was written has other tensors than were given to it.")
    verify_written(sums, store.read, advance)
