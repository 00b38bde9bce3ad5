"""What benchmarks of training share: their command line, our side by the real command, a peer's by its script."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side_by_side import CACHE, WORK, Finished, run

HERE = Path(__file__).parent


def training_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the flags that every benchmark of training takes."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--model", type=Path, default=CACHE / "SmolLM2-135M-Instruct")
    made.add_argument("--lr", default="1e-4")
    made.add_argument("--lora", type=int, default=16, help="rank; 0 trains all weights")
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--name", default="cpu", help="the results go to .cache/bench/*_NAME.*")
    made.add_argument(
        "--peer-python",
        default=default_peer(),
        help="interpreter of the environment that has TRL (benchmarks/requirements.txt); '' leaves TRL out",
    )
    return made


def default_peer() -> str:
    """Return the interpreter that bench.sh made, or nothing."""
    python = WORK / "venv" / "bin" / "python"
    return str(python) if python.exists() else ""


def check_model(options: argparse.Namespace) -> None:
    """Stop with what to type when the model was not fetched."""
    if not options.model.exists():
        sys.exit(
            f"{options.model} is not there yet: run python examples/quickstart/fetch.py first."
        )


@dataclass(frozen=True)
class Trained:
    """A run of nemoalign: how its command went and what its run directory says."""

    finished: Finished
    steps: list[dict[str, Any]]
    """The training lines of metrics.jsonl."""
    validations: list[dict[str, Any]]
    tokens: int


def train(options: argparse.Namespace, algorithm: str, *arguments: object) -> Trained:
    """Train anew with the real command; its own metrics.jsonl says how fast each step was."""
    archive, out = WORK / f"{options.model.name}.nemo", WORK / "run"
    if not archive.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        run([*nemoalign(), "convert", options.model, "-o", archive])
    index = WORK / "index"  # of its own, so that nothing is known from an earlier run
    for made in (out, index):
        shutil.rmtree(made, ignore_errors=True)
    command = [*nemoalign(), algorithm, "--ckpt", archive, "-o", out]
    command += ["--precision", options.precision, "--devices", 1, "--lr", options.lr]
    command += ["--schedule", "constant", "--warmup", 0, *arguments]
    command += ["-s", f"model.data.train_ds.index_mapping_dir={index}"]
    if options.lora:
        command += ["--lora", options.lora, "--lora-targets", "all"]
    finished = run(command, **environment(options))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return Trained(
        finished,
        [line for line in lines if line["split"] == "train"],
        [line for line in lines if line["split"] == "val"],
        json.loads((out / "summary.json").read_text())["tokens"],
    )


def nemoalign() -> list[str]:
    """Return the command of this environment."""
    return [sys.executable, "-m", "nemoalign"]


def peer(
    options: argparse.Namespace, python: str, script: str, *arguments: object
) -> tuple[Finished, dict[str, Any]]:
    """Run a peer's script; return how it went and the figures it prints as JSON."""
    command = [python, HERE / script, "--model", options.model, "--lr", options.lr]
    command += ["--lora", options.lora, "--precision", options.precision]
    command += ["--threads", options.threads, "--device", options.device, *arguments]
    finished = run(command, **environment(options))
    return finished, json.loads(finished.stdout.splitlines()[-1])


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return what both sides find in their environment."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    return {**hidden, "OMP_NUM_THREADS": str(options.threads)}


def costs(finished: Finished) -> dict[str, Any]:
    """Return what is noted of every command."""
    return {
        "command_seconds": finished.seconds,
        "command_cpu_seconds": finished.cpu_seconds,
        "peak_rss_bytes": finished.peak_rss_bytes,
    }


def mean_speed(speeds: Sequence[float]) -> float:
    """Return the speed of steps of about the same size: the harmonic mean of theirs."""
    return len(speeds) / sum(1 / speed for speed in speeds)


def check_same_work(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Stop when the sides did not train the same number of real tokens: their speeds cannot be compared."""
    tokens = {name: rounds[0]["all_tokens"] for name, rounds in results.items()}
    if len(set(tokens.values())) > 1:
        sys.exit(f"The sides trained different numbers of tokens: {tokens}.")
