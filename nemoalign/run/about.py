"""What a report says of a run that no other file of its directory does: ``run.json``."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import nemoalign
from nemoalign.config.merged import flattened
from nemoalign.data.preview import preview

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.run.prepare import Prepared
    from nemoalign.train.inputs import Inputs

SAMPLES = 3
PACKAGES = ("torch", "megatron-core", "transformers", "numpy")


def about(merged: Merged, made: Prepared) -> dict[str, Any]:
    """Return what the run was asked to do and with what, as plain values."""
    return {
        "algorithm": merged.algorithm,
        "source": made.source.describe(),
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        "max_steps": made.inputs.limits.max_steps,
        "command": shlex.join(["nemoalign", *sys.argv[1:]]),
        "versions": _versions(),
        "config": flattened(merged.tree),
        "sources": merged.sources,
        "warnings": [*merged.warnings, *made.warnings],
        "data": made.inputs.findings.lines(),
        "samples": _samples(made.inputs, made.tokenizer),
    }


def _versions() -> dict[str, str]:
    found = {"nemoalign": nemoalign.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "system": platform.platform()}


def _samples(inputs: Inputs, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the first rows as they are trained: runs of text, each with what becomes of it."""
    rows = inputs.train or inputs.validation
    shown = preview(rows, tokenizer, SAMPLES) if rows else ()
    return [{"title": title, "parts": list(parts)} for title, parts in shown]
