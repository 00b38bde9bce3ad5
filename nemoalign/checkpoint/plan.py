"""``--dry-run``: what convert, export and reshard would write, found without writing a byte.

The command itself runs, up to the first byte it would write: so every refusal that can be known
beforehand is made, by the very code that makes it otherwise.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nemoalign.archive.store import TensorStore, checksum_array
from nemoalign.checkpoint.export import with_adapter
from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.proof import logits_bytes
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.sources.stores import PlacedStore
from nemoalign.checkpoint.targets.writing import PLANNING, Planned, existing_parent
from nemoalign.errors import NemoAlignError
from nemoalign.log import ProgressBar, Reporter, Segment

SAMPLE_BYTES = 32 << 20
PROGRAM_BYTES = 120 << 20
"""What the program takes before a tensor is read; index and configuration are in it."""

COPIES = 3
"""As many times the largest tensor may be in memory: as stored, fused or merged, and cast."""

PASSES = 2.5
"""Reading with its sum costs one; writing and reading back, on two cores, the rest."""

START_SECONDS = 0.4

LARGER_THAN_ADAPTER = 4
"""PEFT repeats matrices, but what is this much larger than the adapter is a merged model."""


class _Listener:
    """Passes everything on and keeps the warnings."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Pass a line on."""
        self.reporter.say(text)

    def warn(self, text: str) -> None:
        """Keep a warning and pass it on."""
        self.warnings.append(text)
        self.reporter.warn(text)

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        """Pass metrics on."""
        self.reporter.metrics(values)

    def sample(self, segments: Sequence[Segment]) -> None:
        """Pass a row of data on."""
        self.reporter.sample(segments)

    def progress(
        self, title: str, total: float, unit: str, done: float = 0
    ) -> AbstractContextManager[ProgressBar]:
        """Pass a bar on."""
        return self.reporter.progress(title, total, unit, done)


def plan(
    source: Path,
    target: Path,
    write: Callable[[Reporter], dict[str, Any]],
    reporter: Reporter,
    *,
    verify: str = "hash",
) -> dict[str, Any]:
    """Return what ``write`` would write to ``target``: bytes, memory, seconds, warnings.

    Raises:
        NemoAlignError: whatever ``write`` would refuse before its first byte.
    """
    listener = _Listener(reporter)
    began = time.perf_counter()
    token = PLANNING.set(True)
    try:
        write(listener)
    except Planned as found:
        needed = found.needed_bytes
    else:
        message = "a writer that stages nothing was asked for a plan"
        raise AssertionError(message)
    finally:
        PLANNING.reset(token)
    opening = time.perf_counter() - began
    store = _weights(source, target, needed)
    largest = max((info.size_bytes for info in store.tensors.values()), default=0)
    memory = PROGRAM_BYTES + COPIES * largest
    passes = 1.0 if verify == "none" else PASSES
    return {
        "dry_run": True,
        "source": str(source),
        "target": str(target),
        "tensors": len(store.tensors),
        "bytes": needed,
        "disk_free_bytes": shutil.disk_usage(existing_parent(target)).free,
        "memory_bytes": max(memory, logits_bytes(store)) if verify == "logits" else memory,
        "seconds": round(START_SECONDS + opening + needed * passes * _seconds_per_byte(store), 2),
        "verify": verify,
        "warnings": listener.warnings,
    }


def _weights(source: Path, target: Path, needed_bytes: int) -> TensorStore:
    """Return the tensors that are read: an adapter's own, or those of the base it is merged into."""
    try:
        opened = open_checkpoint(source)
    except NemoAlignError:  # a PEFT adapter opens only together with the base that was named
        return PlacedStore({})
    if not isinstance(opened, Source) or opened.adapter is None or not opened.is_adapter_only:
        return opened.weights
    own = sum(info.size_bytes for info in opened.adapter.weights.tensors.values())
    is_merged = needed_bytes > LARGER_THAN_ADAPTER * own
    return with_adapter(opened, None, target).weights if is_merged else opened.adapter.weights


def _seconds_per_byte(store: TensorStore) -> float:
    """Return what reading and summing a byte costs, measured on rows of the largest tensor."""
    sizes = {name: info.size_bytes for name, info in store.tensors.items() if info.shape}
    if not sizes:
        return 0.0
    name = max(sizes, key=lambda key: sizes[key])
    rows = store.tensors[name].shape[0]
    wanted = max(1, min(rows, rows * SAMPLE_BYTES // max(1, sizes[name])))
    began = time.perf_counter()
    sample = store.read(name, (slice(wanted),))
    checksum_array(sample)
    return (time.perf_counter() - began) / max(1, sample.nbytes)
