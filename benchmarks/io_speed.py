"""Seconds of ``nemoalign convert``, ``export`` and ``reshard``, verified, beside ``cp`` and ``sync`` of the same bytes.

Both ways of one Hugging Face directory: convert writes its .nemo, export writes that back; reshard makes the
.nemo's rank files for two pipeline stages. The peer
copies the file that was read and syncs the copy; ours syncs its own output before it renames it, and is
synced once more for good measure. Sources are in the page cache on both sides. In turn, medians; peak
memory too. Without --model a llama of random weights is made, --gigabytes large.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from random_llama import LAYER_BYTES, random_llama
from side_by_side import WORK, in_turn, median, publish, ratio, run, table

PAIRS = {
    "convert": "cp the model's files",
    "export": "cp the .nemo",
    "reshard": "cp the .nemo again",
}


def main() -> None:
    """Measure both directions and publish io_speed.json and .md."""
    options = parser().parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    model = (options.model and options.model.resolve()) or random_llama(
        2 * max(1, round(options.gigabytes * 1e9 / LAYER_BYTES / 2))
    )
    folder = WORK / "io"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    archive = folder / "model.nemo"
    nemoalign = [sys.executable, "-m", "nemoalign"]
    ranks = ["--tp", options.tp, "--pp", "2", "--format", "ranks", "-o"]
    sides = {
        "convert": partial(timed, folder, [*nemoalign, "convert", model, "-o"], archive),
        PAIRS["convert"]: partial(timed, folder, ["cp", "-r", model], folder / "copy"),
        "export": partial(timed, folder, [*nemoalign, "export", archive, "-o"], folder / "back"),
        PAIRS["export"]: partial(timed, folder, ["cp", archive], folder / "copy.nemo"),
        "reshard": partial(
            timed, folder, [*nemoalign, "reshard", archive, *ranks], folder / "ranks.nemo"
        ),
        PAIRS["reshard"]: partial(timed, folder, ["cp", archive], folder / "copy.nemo"),
    }
    results = in_turn(sides, options.rounds)
    size = size_bytes(model)
    content = {"model": str(model), "bytes": size, "rounds": results}
    publish(f"io_speed_{options.name}", content, markdown(results, model, size))
    shutil.rmtree(folder)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--model", type=Path, help="Hugging Face directory to use instead")
    made.add_argument("--gigabytes", type=float, default=2.0)
    made.add_argument("--tp", default="2", help="of reshard; must divide the query groups")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument(
        "--name", default="2gb", help="the results go to .cache/bench/io_speed_NAME.*"
    )
    return made


def timed(folder: Path, command: list[object], target: Path) -> dict[str, Any]:
    """Run a command that makes ``target``, sync what it made, and return the figures.

    What the other sides left to write is written out first; the inputs are read once, into the cache.
    """
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    source = next(
        Path(str(word))
        for word in command
        if Path(str(word)).is_absolute() and word != sys.executable
    )
    for file in files(source):
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass
    subprocess.run(["sync", "-f", folder], check=True)
    finished = run([*command, target])
    synced = run(["sync", *files(target)])
    return {
        "seconds": finished.seconds + synced.seconds,
        "cpu_seconds": finished.cpu_seconds,
        "peak_rss_bytes": finished.peak_rss_bytes,
    }


def files(path: Path) -> list[Path]:
    """Return the file, or the files of a directory."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def size_bytes(path: Path) -> int:
    """Return the size of a file or of the files of a directory."""
    return sum(file.stat().st_size for file in files(path))


def markdown(results: dict[str, list[dict[str, Any]]], model: Path, size: int) -> str:
    """Return the table for the README."""
    rows = []
    for ours, peer in PAIRS.items():
        mine, theirs = results[ours], results[peer]
        rows.append(
            [
                f"`{ours}`",
                f"{median(mine, 'seconds'):.2f} s",
                f"{median(theirs, 'seconds'):.2f} s ({peer}, sync)",
                f"{ratio(mine, theirs, 'seconds'):.2f} x",
                f"{median(mine, 'peak_rss_bytes') / 2**20:.0f} MiB",
            ]
        )
    head = ["command", "ours, verified", "copy", "ours is", "peak RSS"]
    rounds = len(results["convert"])
    return f"{model.name}, {size / 1e9:.2f} GB, {rounds} rounds in turn:\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()
