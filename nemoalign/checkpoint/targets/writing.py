"""What every conversion shares: options, a place that appears whole or not at all, and accounts."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import nemoalign
from nemoalign.archive.dtypes import Array, cast
from nemoalign.archive.store import checksum_array
from nemoalign.checkpoint.settings.values import section, text
from nemoalign.checkpoint.sources.source import EMBEDDING, Described, Source
from nemoalign.errors import (
    ConfigError,
    ConflictError,
    ContentError,
    ResourceError,
    VerificationError,
)

DTYPES: Mapping[str, str | None] = {
    "keep": None,
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}
"""The element types a conversion can write, by the words of ``--dtype``."""

VERIFY = ("none", "hash", "logits")
REPORT_NAME = "conversion.json"
SPARE_BYTES = 64 << 20

PLANNING = ContextVar("PLANNING", default=False)
"""True in a dry run: writers go as far as the first byte they would write."""


class Planned(Exception):
    """Everything before writing went well; carries the bytes that would be written."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(needed_bytes)
        self.needed_bytes = needed_bytes


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How a checkpoint is written: the flags that ``convert`` and ``export`` share."""

    dtype: str = "keep"
    verify: str = "hash"
    overwrite: bool = False
    tokenizer: Path | None = None
    prove: Callable[[Path], dict[str, Any]] | None = None
    """Shows what the output computes before it appears under its name: ``--verify logits``."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is {self.dtype}; use one of {', '.join(DTYPES)}.")
        if self.verify not in VERIFY:
            raise ConfigError(f"--verify is {self.verify}; use one of {', '.join(VERIFY)}.")

    def written_dtype(self, dtype: str) -> str:
        """Return the element type in which a tensor of ``dtype`` is written."""
        return DTYPES[self.dtype] or dtype

    def proof(self, stage: Path) -> dict[str, Any]:
        """Return what a report says of the logits of the output at ``stage``: nothing unless asked."""
        return {} if self.prove is None else {"logits": self.prove(stage)}

    def cast(self, array: Array, dtype: str, name: str) -> Array:
        """Return ``array`` in the element type it is written in; errors name the tensor."""
        try:
            return cast(array, dtype, self.written_dtype(dtype))
        except ContentError as error:
            raise ContentError(f'"{name}": {error}') from error


@dataclass
class Account:
    """What a conversion read and wrote, tensor by tensor; it must balance at the end."""

    expected: Iterable[str]
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    consumed: dict[str, int] = field(default_factory=dict[str, int])

    def record(self, source: str, targets: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        """Note that ``source`` was read once and became ``targets``."""
        self.consumed[source] = self.consumed.get(source, 0) + 1
        written = {name: list(shape) for name, shape in targets.items()}
        self.rows.append({"source": source, "target": written, "dtype": dtype})

    def close(self) -> None:
        """Check that every source tensor was read exactly once; VerificationError otherwise."""
        wrong = [name for name in self.expected if self.consumed.get(name, 0) != 1]
        wrong += [name for name in self.consumed if name not in set(self.expected)]
        if wrong:
            raise VerificationError(
                f'"{wrong[0]}" was read {self.consumed.get(wrong[0], 0)} times and not once; '
                f"{len(wrong)} tensors are affected. Nothing was written."
            )


def check_target(target: Path, source: Path, options: WriteOptions) -> None:
    """Refuse a target that exists, unless it may be overwritten and is a checkpoint itself.

    Raises:
        ConflictError: when something is there.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if not options.overwrite:
        raise ConflictError(f"{target} exists. Choose another -o, or add --overwrite.")
    if target.is_dir() and target.resolve() in (source.resolve(), *source.resolve().parents):
        raise ConflictError(f"{target} is or holds the source itself. Choose another -o.")
    known = ("config.json", "model_config.yaml", "adapter_config.json", REPORT_NAME)
    is_filled = target.is_dir() and any(target.iterdir())
    if is_filled and not any((target / name).is_file() for name in known):
        raise ConflictError(
            f"{target} is a folder that holds no checkpoint, and --overwrite replaces only "
            "checkpoints. Choose another -o."
        )


def hex_sum(crc: int) -> str:
    """Return a CRC-32 as reports and manifests spell it."""
    return f"{crc:08x}"


@contextmanager
def staging(target: Path, needed_bytes: int) -> Iterator[Path]:
    """Yield a name beside ``target`` to write to; on a clean exit it becomes ``target``.

    Raises:
        ResourceError: when the disk has no room or the folder cannot be written.
        Planned: in a dry run, when everything that can be refused beforehand has not been.
    """
    if PLANNING.get():
        _check_space(target, needed_bytes)
        raise Planned(needed_bytes)
    stage = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target, needed_bytes)
        yield stage
        _publish(stage, target)
    except OSError as error:
        raise ResourceError(
            f"{target} cannot be written: {error.strerror or error}. Choose another -o."
        ) from error
    finally:
        _remove(stage)


def existing_parent(target: Path) -> Path:
    """Return the closest folder above ``target`` that is there already."""
    return next(folder for folder in target.absolute().parents if folder.is_dir())


def _check_space(target: Path, needed_bytes: int) -> None:
    parent = existing_parent(target)
    if not os.access(parent, os.W_OK):
        raise ResourceError(f"{parent} cannot be written. Choose another -o.")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes + SPARE_BYTES:
        raise ResourceError(
            f"{target} needs {needed_bytes / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free. "
            "Free some space, or choose another -o."
        )


def _publish(stage: Path, target: Path) -> None:
    if not target.is_dir() or target.is_symlink():
        stage.replace(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    stage.rename(target)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists() or path.is_symlink():
        path.unlink()


def verify_written(
    written: Mapping[Any, int],
    read: Callable[[Any], Array],
    advance: Callable[[int], None],
) -> None:
    """Read everything back, on two cores, and compare CRC-32 sums with those made while writing.

    Raises:
        VerificationError: when a tensor reads back differently.
    """

    def reread(name: Any) -> tuple[Any, int, int]:
        array = read(name)
        return name, array.nbytes, checksum_array(array)

    with ThreadPoolExecutor(2) as workers:
        for name, size, found in workers.map(reread, written):
            advance(size)
            if found != written[name]:
                raise VerificationError(
                    f"{name}, read back from the output, is not what was written. The disk or the "
                    "memory of this machine is faulty; nothing was kept. Try another disk."
                )


def check_copies(source: Source) -> None:
    """Check that a tied output layer which the source stores as well repeats the embedding.

    Raises:
        ContentError: when it holds other values.
    """
    for name in source.copies.tensors:
        whole, copy = source.weights.read(name), source.copies.read(name)
        rows = min(source.vocab_size, len(copy))
        if not np.array_equal(whole[:rows], copy[:rows]):
            where = "its output layer" if name == EMBEDDING else name
            raise ContentError(
                f"{source.path} ties its embedding to its output layer, but stores {where} with "
                "other values. Set tie_word_embeddings (or share_embeddings_and_output_weights) "
                "to false if the two are meant to differ."
            )


def report_of(
    source: Described, target: Path, options: WriteOptions, began: float
) -> dict[str, Any]:
    """Return the head of a conversion report; tensors and what is particular are added to it."""
    template = prompt_template(source.config)
    return {
        "source": source.facts(),
        "target": {"path": str(target), "dtype": options.dtype},
        "verified": options.verify,
        "seconds": round(time.perf_counter() - began, 3),
        "versions": {
            "nemoalign": nemoalign.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        **({"prompt_template": template} if template else {}),
    }


def prompt_template(config: Mapping[str, Any]) -> str | None:
    """Return the prompt template a model was fine-tuned with, where its configuration records one."""
    return text(section(config, "data", "train_ds"), "prompt_template")


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a conversion report as JSON, one line per tensor."""
    head = json.dumps({**report, "tensors": []}, indent=1, ensure_ascii=False)
    rows = ",\n  ".join(json.dumps(row) for row in report["tensors"])
    whole = head.removesuffix("[]\n}") + f"[\n  {rows}\n ]\n}}\n"
    path.write_text(whole, encoding="utf-8")
