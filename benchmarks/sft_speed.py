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
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import CACHE, in_turn, median, publish, ratio, table
from training_sides import (
    check_model,
    check_same_work,
    costs,
    mean_speed,
    peer,
    train,
    training_parser,
)

NEMOALIGN = "nemoalign sft"


def main() -> None:
    """Measure the sides and publish sft_speed.json and .md."""
    options = parser().parse_args()
    check_model(options)
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
    made = training_parser(__doc__)
    made.add_argument("--train", type=Path, default=CACHE / "train.jsonl")
    made.add_argument("--val", type=Path, default=CACHE / "val.jsonl")
    made.add_argument("--steps", type=int, default=6, help="optimizer steps of one run")
    made.add_argument("--gbs", type=int, default=8, help="rows in one optimizer step")
    made.add_argument("--mbs", type=int, default=1, help="nemoalign's rows in one forward")
    made.add_argument("--peer-mbs", type=int, default=1, help="the peers' rows in one forward")
    made.add_argument("--trl-loss", default="nll", help="TRL's --loss-type")
    made.add_argument("--packing", type=int, default=0, help="tokens of a pack; 0: no side packs")
    made.add_argument("--no-val", action="store_true", help="hold nothing out: shorter runs")
    return made


def nemoalign_side(options: argparse.Namespace, *arguments: object) -> dict[str, Any]:
    """Train with nemoalign and return its figures."""
    held_out = [] if options.no_val else ["--val", options.val]
    amount = ["--max-steps", options.steps, "--gbs", options.gbs, "--mbs", options.mbs]
    trained = train(options, "sft", "--data", options.train, *held_out, *amount, *arguments)
    val = [line["val_loss"] for line in trained.validations] or [None]
    return {
        "losses": [line["loss"] for line in trained.steps],
        "val_before": val[0],
        "val_after": val[-1],
        "all_tokens": trained.tokens,
        "tokens_per_second": mean_speed([line["tokens_per_second"] for line in trained.steps[1:]]),
        **costs(trained.finished),
    }


def peer_side(
    options: argparse.Namespace, python: str, script: str, *arguments: str
) -> dict[str, Any]:
    """Train with a peer's script and return its figures."""
    rows = ["--train", options.train, *([] if options.no_val else ["--val", options.val])]
    amount = ["--steps", options.steps, "--gbs", options.gbs, "--mbs", options.peer_mbs]
    finished, said = peer(options, python, script, *rows, *amount, *arguments)
    return {
        "losses": said["losses"],
        "val_before": said["val_before"],
        "val_after": said["val_after"],
        "all_tokens": sum(said["tokens"]),
        "tokens_per_second": sum(said["tokens"][1:]) / sum(said["seconds"][1:]),
        **costs(finished),
    }


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
