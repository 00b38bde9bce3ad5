"""Tokens per second of ``nemoalign sft`` beside TRL's SFTTrainer and a plain transformers loop.

All sides train the same model on the same rows in the same order, with the same dtype, threads,
optimizer settings and LoRA layers (all linear ones), without recompute. Tokens are real ones, padding
is not counted. They run in turn; the figures are medians, the first step of a run is left out as
warm-up. The losses are printed: a speed without the same loss means nothing.

With --packing the sides are nemoalign packed, TRL in padded batches of --peer-mbs rows, and TRL with
its own packing, in packs of --packing tokens; else all three without packing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import CACHE, WORK, Finished, in_turn, median, publish, ratio, run, table

HERE = Path(__file__).parent
NEMOALIGN = "nemoalign sft"


def main() -> None:
    """Measure the sides and publish sft_speed.json and .md."""
    options = parser().parse_args()
    if not options.model.exists():
        sys.exit(
            f"{options.model} is not there yet: run python examples/quickstart/fetch.py first."
        )
    sides = packed_sides(options) if options.packing else unpacked_sides(options)
    results = in_turn(sides, options.rounds)
    ratios = {
        name: ratio(results[NEMOALIGN], results[name], "tokens_per_second")
        for name in sides
        if name != NEMOALIGN
    }
    check_same_work(results)
    setting = {name: str(value) for name, value in vars(options).items()}
    content = {"setting": setting, "ratios": ratios, "rounds": results}
    publish(f"sft_speed_{options.name}", content, markdown(results, ratios, options))


def unpacked_sides(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return who is compared when every row is a row of its own."""
    sides = {
        NEMOALIGN: partial(nemoalign_side, options, "--no-packing"),
        "plain transformers": partial(peer_side, options, sys.executable, "plain_transformers.py"),
    }
    if options.peer_python:
        sides["TRL SFTTrainer"] = trl_side(options)
    return sides


def packed_sides(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return who is compared when rows lie end to end."""
    if not options.peer_python:
        sys.exit("--packing compares with TRL: make its environment with make bench first.")
    return {
        NEMOALIGN: partial(nemoalign_side, options, "--packing", "--seq-len", options.packing),
        f"TRL, batch {options.peer_mbs}": trl_side(options),
        "TRL, its packing": trl_side(options, "--packing", str(options.packing)),
    }


def trl_side(options: argparse.Namespace, *arguments: str) -> Callable[[], dict[str, Any]]:
    """Return the side that runs TRL."""
    python, loss = options.peer_python, ("--loss-type", options.trl_loss)
    return partial(peer_side, options, python, "trl_sft.py", *loss, *arguments)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--model", type=Path, default=CACHE / "SmolLM2-135M-Instruct")
    made.add_argument("--train", type=Path, default=CACHE / "train.jsonl")
    made.add_argument("--val", type=Path, default=CACHE / "val.jsonl")
    made.add_argument("--steps", type=int, default=6, help="optimizer steps of one run")
    made.add_argument("--gbs", type=int, default=8, help="rows in one optimizer step")
    made.add_argument("--mbs", type=int, default=1, help="nemoalign's rows in one forward")
    made.add_argument("--peer-mbs", type=int, default=1, help="the peers' rows in one forward")
    made.add_argument("--trl-loss", default="nll", help="TRL's --loss-type")
    made.add_argument("--packing", type=int, default=0, help="tokens of a pack; 0: no side packs")
    made.add_argument("--no-val", action="store_true", help="hold nothing out: shorter runs")
    made.add_argument("--lr", default="1e-4")
    made.add_argument("--lora", type=int, default=16, help="rank; 0 trains all weights")
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument(
        "--name", default="cpu", help="the results go to .cache/bench/sft_speed_NAME.*"
    )
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


def nemoalign_side(options: argparse.Namespace, *arguments: object) -> dict[str, Any]:
    """Train with the real command; its own metrics.jsonl says how fast each step was."""
    archive, out = WORK / f"{options.model.name}.nemo", WORK / "run"
    if not archive.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        run([*nemoalign(), "convert", options.model, "-o", archive])
    shutil.rmtree(out, ignore_errors=True)
    command = [*nemoalign(), "sft", "--ckpt", archive, "--data", options.train, *arguments]
    command += [] if options.no_val else ["--val", options.val]
    command += ["-o", out, "--precision", options.precision, "--devices", 1, "--lr", options.lr]
    command += ["--schedule", "constant", "--warmup", 0, "--max-steps", options.steps]
    command += ["--gbs", options.gbs, "--mbs", options.mbs]
    if options.lora:
        command += ["--lora", options.lora, "--lora-targets", "all"]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    finished = run(command, **hidden, OMP_NUM_THREADS=str(options.threads))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    val = [line["val_loss"] for line in lines if line["split"] == "val"] or [None]
    tokens = json.loads((out / "summary.json").read_text())["tokens"]
    return figures(finished, [line["loss"] for line in steps], val[0], val[-1]) | {
        "all_tokens": tokens,
        "tokens_per_second": mean_speed([line["tokens_per_second"] for line in steps[1:]]),
    }


def nemoalign() -> list[str]:
    """Return the command of this environment."""
    return [sys.executable, "-m", "nemoalign"]


def mean_speed(speeds: list[float]) -> float:
    """Return the speed of steps of about the same size: the harmonic mean of theirs."""
    return len(speeds) / sum(1 / speed for speed in speeds)


def peer_side(
    options: argparse.Namespace, python: str, script: str, *arguments: str
) -> dict[str, Any]:
    """Train with a peer's script, which prints its figures as JSON."""
    command = [python, HERE / script, "--model", options.model, "--train", options.train]
    command += [] if options.no_val else ["--val", options.val]
    command += ["--steps", options.steps, "--gbs", options.gbs]
    command += ["--mbs", options.peer_mbs, "--lr", options.lr, "--lora", options.lora]
    command += ["--precision", options.precision, "--threads", options.threads]
    command += ["--device", options.device, *arguments]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    finished = run(command, **hidden, OMP_NUM_THREADS=str(options.threads))
    said = json.loads(finished.stdout.splitlines()[-1])
    return figures(finished, said["losses"], said["val_before"], said["val_after"]) | {
        "all_tokens": sum(said["tokens"]),
        "tokens_per_second": sum(said["tokens"][1:]) / sum(said["seconds"][1:]),
    }


def figures(
    finished: Finished, losses: list[float], before: float | None, after: float | None
) -> dict[str, Any]:
    """Return what is noted of every side."""
    return {
        "losses": losses,
        "val_before": before,
        "val_after": after,
        "command_seconds": finished.seconds,
        "command_cpu_seconds": finished.cpu_seconds,
        "peak_rss_bytes": finished.peak_rss_bytes,
    }


def check_same_work(results: dict[str, list[dict[str, Any]]]) -> None:
    """Stop when the sides did not train the same number of real tokens: their speeds cannot be compared."""
    tokens = {name: rounds[0]["all_tokens"] for name, rounds in results.items()}
    if len(set(tokens.values())) > 1:
        sys.exit(f"The sides trained different numbers of tokens: {tokens}.")


def markdown(
    results: dict[str, list[dict[str, Any]]], ratios: dict[str, float], options: argparse.Namespace
) -> str:
    """Return the table for the README."""
    what = f"LoRA {options.lora}" if options.lora else "full weights"
    packs = f", packs of {options.packing} tokens" if options.packing else ""
    title = (
        f"{options.model.name}, {what}{packs}, {options.precision}, {options.threads} threads on {options.device}, "
        f"{options.steps} steps of {options.gbs} rows, {options.rounds} rounds in turn:"
    )
    head = [
        "side",
        "tokens/s",
        "ours is",
        "whole command",
        "peak RSS",
        "loss 1st / last step",
        "held out",
    ]
    rows = [
        [
            name,
            f"{median(rounds, 'tokens_per_second'):.0f}",
            f"{ratios[name]:.2f} x" if name in ratios else "",
            f"{median(rounds, 'command_seconds'):.0f} s",
            f"{median(rounds, 'peak_rss_bytes') / 2**30:.2f} GiB",
            f"{rounds[0]['losses'][0]:.4f} / {rounds[0]['losses'][-1]:.4f}",
            held_out(rounds[0]),
        ]
        for name, rounds in results.items()
    ]
    return f"{title}\n\n{table(head, rows)}"


def held_out(result: dict[str, Any]) -> str:
    """Return the held-out loss before and after, where it was measured."""
    if result["val_before"] is None:
        return ""
    return f"{result['val_before']:.4f} -> {result['val_after']:.4f}"


if __name__ == "__main__":
    main()
