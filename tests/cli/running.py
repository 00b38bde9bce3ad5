"""The real program in a process of its own."""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass

PROGRAM = (sys.executable, "-m", "nemoalign")
HEAVY = {"torch", "omegaconf", "transformers", "sentencepiece", "megatron", "numpy", "pydantic"}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    cpu_seconds: float
    modules: frozenset[str]
    """Top-level names of everything that was imported."""


def run(*arguments, cwd=None, env=None) -> Ended:
    """Run the program with an import trace; return how it ended and what it imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [PROGRAM[0], "-X", "importtime", *PROGRAM[1:], *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        timeout=120,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = ended.stderr.splitlines(keepends=True)
    trace = [line for line in lines if line.startswith("import time:")]
    return Ended(
        ended.returncode,
        ended.stdout,
        "".join(line for line in lines if not line.startswith("import time:")),
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        frozenset(line.rpartition("|")[2].strip().partition(".")[0] for line in trace),
    )
