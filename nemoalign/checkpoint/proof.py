"""``--verify logits``: source and output compute the same, shown by running both on a CPU.

It happens in a process of its own, started by name, because moving weights needs neither torch nor
megatron; and before the output appears under its name, so that one which fails is never there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nemoalign
from nemoalign.archive.store import TensorStore
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ConfigError, ResourceError, VerificationError
from nemoalign.log import Reporter

CHILD = "nemoalign.model.compare"
RUNTIME_BYTES = 1_500_000_000
"""What torch, transformers and megatron-core take before there is a model."""

KEPT = {"float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-2}
"""Largest difference allowed when the element type stays, as a share of the largest logit."""

NARROWED = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 2e-2}
"""The same for weights that are rounded to another element type."""


def with_proof(
    options: WriteOptions, source: Source, sides: dict[str, str | None], reporter: Reporter
) -> WriteOptions:
    """Return the options with a proof by logits, where they ask for one.

    ``source`` is what is written, adapters merged; ``sides`` names where it came from: ``path``, and
    perhaps ``adapter`` and ``base``.

    Raises:
        ResourceError: when the model in fp32 does not fit into memory.
    """
    if options.verify != "logits":
        return options
    needed = logits_bytes(source.weights)
    there = available_memory()
    if there is not None and needed > there:
        raise ResourceError(
            f"--verify logits runs the model in fp32, which takes about {needed / 1e9:.1f} GB of "
            f"memory, and {there / 1e9:.1f} GB are free. Use --verify hash, or another machine."
        )
    written = options.written_dtype(source.dtypes[0])
    table = KEPT if set(source.dtypes) == {written} else NARROWED
    tolerance = table.get(written, table["bfloat16"])
    return replace(options, prove=partial(_prove, sides, tolerance, reporter))


def refuse_logits(options: WriteOptions, what: str) -> None:
    """Refuse ``--verify logits`` for what computes no logits by itself."""
    if options.verify == "logits":
        raise ConfigError(f"--verify logits compares language models, not {what}. Use hash.")


def logits_bytes(weights: TensorStore) -> int:
    """Return the memory that running a model in fp32 takes, one side at a time."""
    sizes = [info.size for info in weights.tensors.values()]
    return RUNTIME_BYTES + 4 * (sum(sizes) + max(sizes, default=0))


def available_memory() -> int | None:
    """Return the bytes that this process may still take, or None where the system does not say."""
    limits: list[int] = []
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            limits.append(1024 * int(line.split()[1]))
    limit, used = (_lines(Path(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current"))
    if limit and used and limit[0].isdigit():
        limits.append(int(limit[0]) - int(used[0]))
    return min(limits, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _prove(
    sides: dict[str, str | None], tolerance: float, reporter: Reporter, stage: Path
) -> dict[str, Any]:
    """Run both sides and return how far their logits are apart.

    Raises:
        VerificationError: when that is more than the tolerance, or one of them does not run.
    """
    reporter.say("Running both sides on the CPU in fp32 ...")
    found = _run({"left": sides, "right": {"path": str(stage)}})
    allowed = tolerance * max(1.0, found["largest_logit"])
    found |= {"tolerance": allowed}
    words = (
        f"logits differ by at most {found['max_abs_diff']:.3g} ({allowed:.3g} is allowed), the "
        f"likeliest token is the same at {found['top1_agreement']:.1%} of {found['positions']} "
        "positions"
    )
    if not found["max_abs_diff"] <= allowed:
        raise VerificationError(
            f"{sides['path']} and what was written of it compute different things: {words}. Nothing "
            "was kept. Please report this model."
        )
    reporter.say(f"Verified: {words}.")
    return found


def _run(question: dict[str, Any]) -> dict[str, Any]:
    package = str(Path(nemoalign.__file__).parents[1])
    # No card, no network, and none of the ranks this process may be one of.
    environ = {name: value for name, value in os.environ.items() if name not in _RANK_NAMES}
    environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        [sys.executable, "-P", "-m", CHILD],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    answer = ended.stdout.strip().splitlines()
    if ended.returncode == 0 and answer:
        found: dict[str, Any] = json.loads(answer[-1])
        if "error" not in found:
            return found
        raise VerificationError(f"The logits cannot be compared: {found['error']}")
    last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise VerificationError(f"The logits cannot be compared: exit {ended.returncode}, {last}")


_RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
