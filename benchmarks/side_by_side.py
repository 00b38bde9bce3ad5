"""Commands measured in turn (A B A B ...), so that a busy minute hits every side alike.

Writes one JSON file and prints one Markdown table; ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("NEMOALIGN_CACHE", PROJECT / ".cache" / "nemoalign"))
WORK = PROJECT / ".cache" / "bench"


@dataclass(frozen=True)
class Finished:
    """A command that ended well: what it printed and what it took, its children included."""

    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


def run(command: Sequence[object], **environment: str) -> Finished:
    """Run a command to its end and measure it; its talk goes to a file, shown when it fails."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            words, stdout=stdout, stderr=stderr, env=os.environ | environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        talk = stderr.read()
        if process.returncode:
            sys.exit(f"{shlex.join(words)} ended with {process.returncode}:\n{talk[-4000:]}")
        return Finished(stdout.read(), talk, seconds, cpu_time(usage), usage.ru_maxrss * 1024)


def cpu_time(usage: resource.struct_rusage) -> float:
    """Return user and system seconds."""
    return usage.ru_utime + usage.ru_stime


def in_turn(
    sides: Mapping[str, Callable[[], dict[str, Any]]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Run every side once a round, in the order given; return each side's results."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(side())
    return results


def median(results: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the median of one figure over the rounds."""
    return statistics.median(result[key] for result in results)


def ratio(ours: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the median over the rounds of our figure divided by the peer's of the same round."""
    return statistics.median(a[key] / b[key] for a, b in zip(ours, peer, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(name: str, content: Mapping[str, Any], markdown: str) -> None:
    """Write ``name``.json and ``name``.md under the benchmark folder and print the table."""
    WORK.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), **content}
    (WORK / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (WORK / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    print(markdown)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
    }
